//! Which targets an agent lets itself be sent to, whatever the edge says.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_model::{AgentTarget, HostName, HostPattern};

/// Targets that are allowed: a name, names below a domain, or a network, with a port or with any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRule {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Names(HostPattern),
    Network(IpNet),
}

impl TargetRule {
    /// Reads `nas.lan`, `*.lan`, `192.168.1.0/24`, `[2001:db8::]/64`, each with `:PORT` or without.
    pub fn parse(text: &str) -> Option<Self> {
        let (hosts, port) = match text.rsplit_once(':') {
            Some((hosts, digits))
                if !digits.is_empty()
                    && digits.bytes().all(|c| c.is_ascii_digit())
                    && (!hosts.contains(':') || hosts.starts_with('[')) =>
            {
                (hosts, Some(digits.parse().ok().filter(|port| *port > 0)?))
            }
            _ => (text, None),
        };
        let plain = hosts.replace(['[', ']'], "");
        let network = plain.parse::<IpNet>().ok();
        let network = network.or_else(|| plain.parse::<IpAddr>().ok().map(IpNet::from));
        let hosts = match network {
            Some(network) => Hosts::Network(network),
            None => Hosts::Names(HostPattern::parse(hosts).ok()?),
        };
        Some(Self { hosts, port })
    }

    fn is_for_port(&self, port: u16) -> bool {
        self.port.is_none_or(|wanted| wanted == port)
    }

    fn names(&self, host: &HostName) -> bool {
        matches!(&self.hosts, Hosts::Names(names) if names.matches(host))
    }

    fn holds(&self, address: IpAddr) -> bool {
        matches!(&self.hosts, Hosts::Network(network) if network.contains(&address.to_canonical()))
    }
}

impl fmt::Display for TargetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Names(names) => write!(f, "{names}")?,
            Hosts::Network(network) => write!(f, "{network}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Whether a target may be used at all. A name may turn out not to be, once it is resolved.
pub(crate) fn may_be(rules: &[TargetRule], target: &AgentTarget) -> bool {
    if rules.is_empty() {
        return true;
    }
    rules
        .iter()
        .filter(|rule| rule.is_for_port(target.port()))
        .any(|rule| match target.host().ip() {
            Some(address) => rule.holds(address),
            None => rule.names(target.host()) || matches!(rule.hosts, Hosts::Network(_)),
        })
}

/// Whether the target may be used at this address.
pub(crate) fn allows(rules: &[TargetRule], target: &AgentTarget, address: IpAddr) -> bool {
    rules.is_empty()
        || rules
            .iter()
            .filter(|rule| rule.is_for_port(target.port()))
            .any(|rule| rule.names(target.host()) || rule.holds(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_for_names_networks_and_ports() {
        let rules = |texts: &[&str]| -> Vec<TargetRule> {
            texts
                .iter()
                .map(|text| TargetRule::parse(text).unwrap())
                .collect()
        };
        for (texts, target, address, may, allowed) in [
            (&[][..], "http://nas", "10.0.0.1", true, true),
            (&["nas"], "http://nas", "10.0.0.1", true, true),
            (&["nas:81"], "http://nas", "10.0.0.1", false, false),
            (&["nas:80"], "http://nas", "10.0.0.1", true, true),
            (&["*.lan"], "http://nas.lan", "10.0.0.1", true, true),
            (&["*.lan"], "http://nas.wan", "10.0.0.1", false, false),
            (&["10.0.0.0/8"], "http://nas", "10.0.0.1", true, true),
            (
                &["10.0.0.0/8"],
                "http://nas",
                "169.254.169.254",
                true,
                false,
            ),
            (
                &["10.0.0.0/8"],
                "http://169.254.169.254",
                "169.254.169.254",
                false,
                false,
            ),
            (&["10.0.0.1:80"], "http://10.0.0.1", "10.0.0.1", true, true),
            (
                &["10.0.0.1:80"],
                "http://10.0.0.1:81",
                "10.0.0.1",
                false,
                false,
            ),
            (
                &["[2001:db8::]/32:80"],
                "http://[2001:db8::1]",
                "2001:db8::1",
                true,
                true,
            ),
            (
                &["2001:db8::/32"],
                "http://[2001:db8::1]",
                "2001:db8::1",
                true,
                true,
            ),
            (
                &["10.0.0.0/8", "nas"],
                "http://nas",
                "192.168.0.1",
                true,
                true,
            ),
        ] {
            let (rules, target) = (rules(texts), AgentTarget::parse(target).unwrap());
            assert_eq!(may_be(&rules, &target), may, "{texts:?} {target}");
            let address = address.parse().unwrap();
            assert_eq!(
                allows(&rules, &target, address),
                allowed,
                "{texts:?} {target}"
            );
        }
        for bad in ["", "http://nas", "10.0.0.0/33", "nas:0", "a b"] {
            assert!(TargetRule::parse(bad).is_none(), "{bad:?}");
        }
    }
}
