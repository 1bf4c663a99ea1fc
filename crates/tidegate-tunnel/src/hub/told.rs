//! What edge and agent tell each other, between the words of the model and those of the wire.

use tidegate_model::{
    Mapping, MappingVerdict, ProxyProtocolVersion, RequestedMapping, UpstreamProtocol,
};

use crate::wire;

pub(super) fn mapping(mapping: &Mapping) -> wire::Mapping {
    let Mapping {
        id,
        target,
        protocol,
        tls,
        proxy_protocol,
        connect_timeout,
        names,
    } = mapping;
    wire::Mapping {
        id: id.as_str().to_owned(),
        target: target.to_string(),
        protocol: match protocol {
            UpstreamProtocol::Auto => 0,
            UpstreamProtocol::Http1 => 1,
            UpstreamProtocol::Http2 => 2,
        },
        tls: tls.as_ref().map(|tls| wire::AgentTls {
            server_name: tls.server_name.clone(),
            ca_der: tls.ca_der.iter().map(|it| it.clone().into()).collect(),
            insecure_skip_verify: tls.insecure_skip_verify,
        }),
        proxy_protocol: proxy_protocol.map(|version| match version {
            ProxyProtocolVersion::V1 => 1,
            ProxyProtocolVersion::V2 => 2,
        }),
        connect_timeout_ms: u64::try_from(connect_timeout.as_millis()).unwrap_or(u64::MAX),
        names: names.clone(),
    }
}

pub(super) fn verdict(verdict: &MappingVerdict) -> wire::Verdict {
    let MappingVerdict {
        name,
        accepted,
        reason,
        message,
    } = verdict.clone();
    wire::Verdict {
        name,
        accepted,
        reason,
        message,
    }
}

pub(super) fn wish(wish: wire::Requested) -> RequestedMapping {
    let wire::Requested {
        name,
        hostname,
        target,
        insecure_skip_verify,
        description,
        port,
        proxy_protocol,
    } = wish;
    RequestedMapping {
        name,
        hostname,
        port,
        target,
        proxy_protocol: proxy_protocol.and_then(wire::proxy_protocol),
        insecure_skip_verify,
        description,
    }
}
