//! Stand-ins that the first slice runs with.

pub(crate) mod balance {
    use std::net::SocketAddr;

    use tidegate_model::{BackendGroup, LoadBalancing, WeightedBackend};

    #[derive(Debug, Clone, Copy)]
    pub(crate) struct EndpointView {
        pub(crate) address: SocketAddr,
        pub(crate) healthy: bool,
        pub(crate) active: u32,
    }

    pub(crate) fn pick(
        _policy: &LoadBalancing,
        endpoints: &[EndpointView],
        _rng: &mut fastrand::Rng,
        _hash: Option<u64>,
        _cursor: &mut usize,
    ) -> Option<usize> {
        let healthy = endpoints
            .iter()
            .enumerate()
            .filter(|(_, view)| view.healthy);
        let best = healthy
            .min_by_key(|(_, view)| view.active)
            .map(|(index, _)| index);
        best.or((!endpoints.is_empty()).then_some(0))
    }

    pub(crate) fn sticky_endpoint(_endpoints: &[EndpointView], _wanted: u64) -> Option<usize> {
        None
    }

    pub(crate) fn sticky_cookie(
        name: &str,
        address: SocketAddr,
        _max_age: Option<std::time::Duration>,
    ) -> String {
        format!("{name}={address}")
    }

    pub(crate) fn choose_backend(group: &BackendGroup) -> Option<&WeightedBackend> {
        if let [only] = &group.backends[..] {
            return (only.weight > 0).then_some(only);
        }
        let total: u32 = group.backends.iter().map(|backend| backend.weight).sum();
        let mut at = (total > 0).then(|| fastrand::u32(0..total))?;
        group
            .backends
            .iter()
            .find(|backend| match at.checked_sub(backend.weight) {
                None => true,
                Some(rest) => {
                    at = rest;
                    false
                }
            })
    }
}

pub(crate) mod proxy_protocol {
    use std::net::SocketAddr;

    pub(crate) enum Parsed {
        Incomplete,
        #[allow(dead_code, reason = "interim")]
        Header {
            source: SocketAddr,
            destination: SocketAddr,
            len: usize,
        },
        #[allow(dead_code, reason = "interim")]
        Local {
            len: usize,
        },
        NotProxy,
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, std::io::Error> {
        Ok(if bytes.is_empty() {
            Parsed::Incomplete
        } else {
            Parsed::NotProxy
        })
    }

    pub(crate) fn encode(
        _version: tidegate_model::ProxyProtocolVersion,
        _addresses: Option<(SocketAddr, SocketAddr)>,
    ) -> Vec<u8> {
        Vec::new()
    }
}

pub(crate) mod access {
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use http::{Method, StatusCode, Uri, Version};
    use tidegate_model::RouteId;

    pub(crate) struct Line<'a> {
        pub(crate) request_id: u128,
        pub(crate) client: IpAddr,
        pub(crate) method: &'a Method,
        pub(crate) host: Option<&'a str>,
        pub(crate) target: &'a Uri,
        pub(crate) version: Version,
        pub(crate) status: StatusCode,
        pub(crate) sent: u64,
        pub(crate) duration: Duration,
        pub(crate) route: Option<&'a RouteId>,
        pub(crate) rule: Option<&'a str>,
        pub(crate) upstream: Option<SocketAddr>,
        pub(crate) retries: usize,
        pub(crate) reason: Option<&'static str>,
        pub(crate) error: Option<&'a str>,
        pub(crate) aborted: bool,
    }

    pub(crate) fn emit(_settings: &crate::AccessLogSettings, line: &Line<'_>) {
        let Line {
            request_id,
            client,
            method,
            host,
            version,
            status,
            sent,
            duration,
            ..
        } = line;
        let route = line.route.map(ToString::to_string);
        let (rule, upstream, retries) = (line.rule, line.upstream, line.retries);
        let (reason, error, aborted) = (line.reason, line.error, line.aborted);
        let path = line.target.path();
        tracing::info!(target: "access", request_id, %client, %method, host, path, ?version,
            status = status.as_u16(), sent, ?duration, route, rule, ?upstream, retries, reason, error,
            aborted);
    }
}
