//! What the answers to a trial prove. Nothing is sent or waited for here.
//!
//! Two made-up peers announce one torrent. What the tracker tells the second of the first is what it would tell
//! clients of each other, so it must be the very address of the first. An answer that came back proves less:
//! whoever replaces the source of datagrams on their way restores it in the answers.

use std::net::{IpAddr, SocketAddr};

use tidegate_model::{UdpRelayMode, UdpUnlisted, UdpWayState};

/// What was heard until a trial was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing.
    Nothing,
    /// Answers to ourselves, none to others.
    Own,
    /// Answers to others, and this of their addresses.
    Back(Listing),
}

/// As whom the tracker lists a peer of the trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    /// As who it is.
    Same,
    /// As another.
    Other {
        /// As whom it announced.
        announced: IpAddr,
        /// As whom it is listed.
        seen: IpAddr,
    },
    /// It did not tell.
    Unknown(UdpUnlisted),
}

/// Reads what the second of two peers was told. Peers of other ports are what an earlier trial has left.
pub(super) fn listing(
    announced: [SocketAddr; 2],
    told: impl Iterator<Item = SocketAddr> + Clone,
) -> Listing {
    let [first, _] = announced;
    if told.clone().any(|peer| peer == first) {
        return Listing::Same;
    }
    // Some trackers list the asker too, who must not be another either.
    for peer in told {
        let mut announced = announced.iter();
        let of = announced.find(|of| of.port() == peer.port() && of.ip() != peer.ip());
        if let Some(of) = of {
            return Listing::Other {
                announced: of.ip(),
                seen: peer.ip(),
            };
        }
    }
    Listing::Unknown(UdpUnlisted::NoPeers)
}

/// What is known of a way after a trial. `replaced` is what the last trial that could tell has found, if that was
/// a replaced address: silence does not refute it.
pub(super) fn verdict(
    before: UdpWayState,
    replaced: Option<UdpWayState>,
    mode: UdpRelayMode,
    heard: Heard,
) -> UdpWayState {
    match (heard, mode) {
        (Heard::Back(Listing::Same), _) => UdpWayState::Preserved,
        (Heard::Back(Listing::Other { announced, seen }), _) => {
            UdpWayState::Replaced { announced, seen }
        }
        (Heard::Back(Listing::Unknown(why)), _) => match (why, replaced) {
            (UdpUnlisted::Unanswered | UdpUnlisted::NoPeers, Some(replaced)) => replaced,
            _ => UdpWayState::Unlisted(why),
        },
        (Heard::Own, UdpRelayMode::Transparent) => UdpWayState::NoWayBack,
        (Heard::Own, UdpRelayMode::ProxyProtocol) => UdpWayState::HeaderNotRead,
        // A tracker that is started again is found at the same end of the same way.
        (Heard::Nothing, _) if before.is_open() => UdpWayState::Silent,
        (Heard::Nothing, _) => UdpWayState::NoAnswer,
    }
}

#[cfg(test)]
mod tests {
    use UdpRelayMode::{ProxyProtocol, Transparent};
    use UdpUnlisted::{NoPeers, Refused, Unanswered};
    use UdpWayState::{
        HeaderNotRead, NoAnswer, NoWayBack, NotPermitted, Preserved, Silent, Trying, Unlisted,
    };

    use super::*;

    #[test]
    fn peers_tell_whom_the_tracker_sees() {
        let peer = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let announced = [peer("192.0.2.1:4001"), peer("198.51.100.1:4002")];
        let other = |announced: &str, seen: &str| Listing::Other {
            announced: announced.parse().unwrap(),
            seen: seen.parse().unwrap(),
        };
        let nobody = Listing::Unknown(NoPeers);
        for (told, expected) in [
            (&["192.0.2.1:4001"][..], Listing::Same),
            (&["198.51.100.1:4002", "192.0.2.1:4001"], Listing::Same),
            // Left from before, when addresses were replaced.
            (&["10.0.0.1:3999", "192.0.2.1:4001"], Listing::Same),
            (&["10.0.0.1:4001"], other("192.0.2.1", "10.0.0.1")),
            (&["10.0.0.1:4002"], other("198.51.100.1", "10.0.0.1")),
            // Both have become the other one.
            (&["198.51.100.1:4001"], other("192.0.2.1", "198.51.100.1")),
            (&["198.51.100.1:4002"], nobody),
            (&["10.0.0.1:3999"], nobody),
            (&[], nobody),
        ] {
            let peers = told.iter().map(|text| peer(text));
            assert_eq!(listing(announced, peers), expected, "{told:?}");
        }
    }

    #[test]
    fn silence_is_told_from_a_way_that_loses_addresses() {
        let ip = IpAddr::from([192, 0, 2, 1]);
        let (announced, seen) = (ip, IpAddr::from([10, 0, 0, 1]));
        let replaced = UdpWayState::Replaced { announced, seen };
        let back = Heard::Back;
        let (nothing, own) = (Heard::Nothing, Heard::Own);
        let unknown = |why| back(Listing::Unknown(why));
        let other = back(Listing::Other { announced, seen });
        for (before, known, mode, heard, found) in [
            (Trying, None, Transparent, own, NoWayBack),
            (Trying, None, Transparent, nothing, NoAnswer),
            (Trying, None, ProxyProtocol, own, HeaderNotRead),
            (Trying, None, ProxyProtocol, nothing, NoAnswer),
            (Preserved, None, Transparent, own, NoWayBack),
            (Preserved, None, Transparent, nothing, Silent),
            (Silent, None, ProxyProtocol, nothing, Silent),
            (Unlisted(NoPeers), None, Transparent, nothing, Silent),
            (NotPermitted, None, Transparent, nothing, NoAnswer),
            (Trying, None, Transparent, back(Listing::Same), Preserved),
            (Preserved, None, Transparent, other, replaced),
            (Trying, None, ProxyProtocol, other, replaced),
            (
                Trying,
                None,
                Transparent,
                unknown(Refused),
                Unlisted(Refused),
            ),
            (
                Trying,
                None,
                Transparent,
                unknown(Unanswered),
                Unlisted(Unanswered),
            ),
            (
                Trying,
                None,
                Transparent,
                unknown(NoPeers),
                Unlisted(NoPeers),
            ),
            // What was seen stays true until it is refuted, or nothing can be seen any more.
            (replaced, Some(replaced), Transparent, nothing, NoAnswer),
            (
                NoAnswer,
                Some(replaced),
                Transparent,
                unknown(Unanswered),
                replaced,
            ),
            (
                NoAnswer,
                Some(replaced),
                Transparent,
                unknown(NoPeers),
                replaced,
            ),
            (
                replaced,
                Some(replaced),
                Transparent,
                unknown(Refused),
                Unlisted(Refused),
            ),
            (
                replaced,
                Some(replaced),
                Transparent,
                back(Listing::Same),
                Preserved,
            ),
        ] {
            let judged = verdict(before, known, mode, heard);
            assert_eq!(judged, found, "{before:?} {mode:?} {heard:?}");
        }
        assert!(!replaced.is_open());
    }
}
