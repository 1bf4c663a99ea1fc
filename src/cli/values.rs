//! Parsers of option values, and the options that several commands share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tidegate_model::PortSet;

use crate::source::state;

/// A duration such as `30s`, `1h30m` or `90d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write one such as 30s, 1h30m or 90d");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(|| format!("{text:?} has no unit: write {text}s for seconds"))?;
        let (number, tail) = rest.split_at(digits);
        let number: u32 = number.parse().map_err(|_| bad())?;
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86_400),
            _ => return Err(bad()),
        };
        total = unit
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(bad)?;
        rest = tail;
    }
    if total.is_zero() {
        return Err(bad());
    }
    Ok(total)
}

/// A size such as `65536`, `64Ki` or `1Mi`, in bytes.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "Ki" => 1 << 10,
        "M" => 1_000_000,
        "Mi" => 1 << 20,
        _ => {
            return Err(format!(
                "{text:?} is not a size: write one such as 64Ki or 1Mi"
            ));
        }
    };
    number
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| format!("{text:?} is not a size: write one such as 64Ki or 1Mi"))
}

/// A time between two of something, or `off`.
pub(super) fn every(text: &str) -> Result<Every, String> {
    if text == "off" {
        return Ok(Every::Never);
    }
    duration(text)
        .map(Every::Time)
        .map_err(|error| format!("{error}, or off"))
}

/// How often something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Every {
    Never,
    Time(Duration),
}

impl Every {
    /// The time between two.
    pub(super) fn interval(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Time(time) => Some(time),
        }
    }
}

/// Ports such as `25565,51820/udp,20000-20100`.
pub(super) fn ports(text: &str) -> Result<PortSet, String> {
    const MOST: usize = 256;
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    let items: Vec<&str> = items.into_iter().filter(|item| !item.is_empty()).collect();
    let ports = PortSet::parse(&items)
        .map_err(|error| format!("{error}: write ports such as 25565,51820/udp,20000-20100"))?;
    match ports.count() {
        count if count > MOST => Err(format!("{count} ports are more than {MOST}")),
        _ => Ok(ports),
    }
}

/// A listener address, or just a port for all addresses.
pub(super) fn listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(Listen::Port(port));
    }
    text.parse()
        .map(Listen::Address)
        .map_err(|_| {
            format!(
                "{text:?} is not an address to listen on: write one such as 443, 0.0.0.0:443, [::]:443 or off"
            )
        })
}

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listen {
    Off,
    Port(u16),
    Address(SocketAddr),
}

impl Listen {
    /// The address; a bare port means every address of the machine, of both families where it has both.
    pub(super) fn resolve(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::Port(port) => Some(SocketAddr::new(all_addresses(), port)),
            Self::Address(address) => Some(address),
        }
    }
}

/// `::` accepts IPv4 too; a machine may be without IPv6.
fn all_addresses() -> IpAddr {
    if UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// Where the state folder is.
#[derive(Debug, Clone, Args)]
pub(super) struct StateArgs {
    /// Folder for what the edge must remember: internal CA, certificates, status.
    ///
    /// Default: what systemd gives as STATE_DIRECTORY, else DIR/.tidegate, else ~/.local/state/tidegate.
    /// Commands that only look also find ./.tidegate and /var/lib/tidegate.
    #[arg(
        long = "state-dir",
        visible_alias = "state",
        env = "TIDEGATE_STATE_DIR",
        value_name = "DIR"
    )]
    pub(super) state: Option<PathBuf>,
}

impl StateArgs {
    /// The folder that an edge already made, for commands that only look.
    pub(super) fn find(&self, objects: Option<&Path>) -> anyhow::Result<PathBuf> {
        let usual = self.resolve(objects)?;
        if self.state.is_some() || objects.is_some() {
            return Ok(usual);
        }
        let candidates = [
            PathBuf::from(state::DEFAULT_NAME),
            usual.clone(),
            PathBuf::from("/var/lib/tidegate"),
        ];
        Ok(candidates
            .into_iter()
            .find(|candidate| candidate.is_dir())
            .unwrap_or(usual))
    }

    /// The folder, given the folder of objects if there is one.
    pub(super) fn resolve(&self, objects: Option<&Path>) -> anyhow::Result<PathBuf> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        if let Some(given) = std::env::var_os("STATE_DIRECTORY").filter(|given| !given.is_empty()) {
            return Ok(given.into());
        }
        if let Some(objects) = objects {
            return Ok(objects.join(state::DEFAULT_NAME));
        }
        if let Some(home) = std::env::var_os("XDG_STATE_HOME").filter(|home| !home.is_empty()) {
            return Ok(PathBuf::from(home).join("tidegate"));
        }
        match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
            Some(home) => Ok(PathBuf::from(home).join(".local/state/tidegate")),
            None => anyhow::bail!(
                "find a state folder: neither HOME nor XDG_STATE_HOME is set; give one with --state-dir"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("30s", 30), ("1h30m", 5400), ("90d", 7_776_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "30", "s", "1x", "0s", "-1s", "99999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn intervals_are_read() {
        let six_hours = Duration::from_secs(6 * 3600);
        assert_eq!(every("6h").unwrap().interval(), Some(six_hours));
        assert_eq!(every("off").unwrap().interval(), None);
        assert!(every("0s").unwrap_err().ends_with(", or off"));
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("64Ki"), Ok(65_536));
        assert_eq!(size("100"), Ok(100));
        assert!(size("1Qi").is_err());
    }

    #[test]
    fn listeners_are_read() {
        assert_eq!(listen("off"), Ok(Listen::Off));
        assert_eq!(listen("8443"), Ok(Listen::Port(8443)));
        assert_eq!(listen(":8443"), Ok(Listen::Port(8443)));
        assert_eq!(
            listen("[::1]:1"),
            Ok(Listen::Address("[::1]:1".parse().unwrap()))
        );
        assert!(listen("localhost").is_err());
    }
}
