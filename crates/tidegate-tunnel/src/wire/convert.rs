//! Between what stands on the wire and the vocabulary of the edge.
//!
//! What an agent does not understand of a mapping makes it refuse that mapping and no other: this is how a newer edge
//! may use what an older agent does not know.

use std::sync::Arc;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use tidegate_model::{self as model, AgentTarget, AgentTargetError, MappingId};

use super::{AgentTls, Mapping, Refused, Requested, Verdict};

/// Why an agent cannot serve a mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownMapping {
    /// No identifier.
    #[error("{0:?} is no identifier of a mapping")]
    Id(String),
    /// A scheme of the future, or no URL.
    #[error("read the mapping's target")]
    Target(#[source] AgentTargetError),
    /// An HTTP version of the future.
    #[error("the HTTP version {0} is not known")]
    Protocol(u8),
    /// A version of the PROXY protocol of the future.
    #[error("the PROXY protocol version {0} is not known")]
    ProxyProtocol(u8),
}

impl UnknownMapping {
    /// One word, for [`Refused::reason`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Id(_) => "InvalidMapping",
            Self::Target(_) => "TargetNotSupported",
            Self::Protocol(_) => "ProtocolNotSupported",
            Self::ProxyProtocol(_) => "ProxyProtocolNotSupported",
        }
    }

    /// What the edge is told.
    pub fn refused(&self, id: &str) -> Refused {
        Refused {
            id: id.to_owned(),
            reason: self.reason().to_owned(),
            message: self.to_string(),
        }
    }
}

/// The version of the PROXY protocol with that number.
pub fn proxy_protocol(version: u8) -> Option<model::ProxyProtocolVersion> {
    match version {
        1 => Some(model::ProxyProtocolVersion::V1),
        2 => Some(model::ProxyProtocolVersion::V2),
        _ => None,
    }
}

impl From<&model::Mapping> for Mapping {
    fn from(mapping: &model::Mapping) -> Self {
        Self {
            id: mapping.id.to_string(),
            target: mapping.target.to_string(),
            protocol: match mapping.protocol {
                model::UpstreamProtocol::Auto => 0,
                model::UpstreamProtocol::Http1 => 1,
                model::UpstreamProtocol::Http2 => 2,
            },
            tls: mapping.tls.as_ref().map(|tls| AgentTls {
                server_name: tls.server_name.clone(),
                ca_der: tls.ca_der.iter().cloned().map(ByteVec::from).collect(),
                insecure_skip_verify: tls.insecure_skip_verify,
            }),
            proxy_protocol: mapping.proxy_protocol.map(|version| match version {
                model::ProxyProtocolVersion::V1 => 1,
                model::ProxyProtocolVersion::V2 => 2,
            }),
            connect_timeout_ms: u64::try_from(mapping.connect_timeout.as_millis())
                .unwrap_or(u64::MAX),
            names: mapping.names.clone(),
        }
    }
}

impl TryFrom<Mapping> for model::Mapping {
    type Error = UnknownMapping;

    fn try_from(mapping: Mapping) -> Result<Self, UnknownMapping> {
        Ok(Self {
            id: MappingId::parse(&mapping.id).ok_or(UnknownMapping::Id(mapping.id))?,
            target: AgentTarget::parse(&mapping.target).map_err(UnknownMapping::Target)?,
            protocol: match mapping.protocol {
                0 => model::UpstreamProtocol::Auto,
                1 => model::UpstreamProtocol::Http1,
                2 => model::UpstreamProtocol::Http2,
                other => return Err(UnknownMapping::Protocol(other)),
            },
            tls: mapping.tls.map(|tls| model::AgentTls {
                server_name: tls.server_name,
                ca_der: tls.ca_der.into_iter().map(Vec::from).collect(),
                insecure_skip_verify: tls.insecure_skip_verify,
            }),
            proxy_protocol: match mapping.proxy_protocol {
                None => None,
                Some(version) => {
                    Some(proxy_protocol(version).ok_or(UnknownMapping::ProxyProtocol(version))?)
                }
            },
            connect_timeout: Duration::from_millis(mapping.connect_timeout_ms),
            names: mapping.names,
        })
    }
}

/// The full set for an agent, in the edge's order.
pub fn mappings(version: u64, mappings: &[Arc<model::Mapping>]) -> super::Mappings {
    super::Mappings {
        version,
        mappings: mappings.iter().map(|it| Mapping::from(&**it)).collect(),
    }
}

impl From<&model::MappingVerdict> for Verdict {
    fn from(verdict: &model::MappingVerdict) -> Self {
        Self {
            name: verdict.name.clone(),
            accepted: verdict.accepted,
            reason: verdict.reason.clone(),
            message: verdict.message.clone(),
        }
    }
}

impl From<Requested> for model::RequestedMapping {
    fn from(wish: Requested) -> Self {
        Self {
            name: wish.name,
            hostname: wish.hostname,
            port: wish.port,
            target: wish.target,
            proxy_protocol: wish.proxy_protocol.and_then(proxy_protocol),
            insecure_skip_verify: wish.insecure_skip_verify,
            description: wish.description,
        }
    }
}
