//! Stand-ins that the first slice runs with.

pub(crate) mod balance {
    use std::net::SocketAddr;

    use tidegate_model::{LoadBalancing, WeightedBackend};

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

    pub(crate) fn endpoint_id(address: SocketAddr) -> u64 {
        hash(address.to_string().as_bytes())
    }

    pub(crate) fn sticky_id(_headers: &http::HeaderMap, _name: &str) -> Option<u64> {
        None
    }

    pub(crate) fn hash(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u64::from(*byte))
        })
    }

    pub(crate) fn choose_backend(
        backends: &[WeightedBackend],
        _sticky: Option<u64>,
    ) -> Option<&WeightedBackend> {
        if let [only] = backends {
            return (only.weight > 0).then_some(only);
        }
        let total: u32 = backends.iter().map(|backend| backend.weight).sum();
        let mut at = (total > 0).then(|| fastrand::u32(0..total))?;
        backends
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
