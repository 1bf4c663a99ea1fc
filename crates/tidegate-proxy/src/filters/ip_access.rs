//! Which client addresses may come.

use std::net::IpAddr;

use tidegate_model::IpAccess;

/// Whether the client may pass: deny wins, and a non-empty allow list refuses everybody else.
pub(crate) fn is_allowed(access: &IpAccess, client: IpAddr) -> bool {
    let client = client.to_canonical();
    !access.deny.iter().any(|net| net.contains(&client))
        && (access.allow.is_empty() || access.allow.iter().any(|net| net.contains(&client)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_and_allow_refuses_the_rest() {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        for (allow, deny, client, expected) in [
            (&[] as &[&str], &[] as &[&str], "1.2.3.4", true),
            (&["10.0.0.0/8"], &[], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "::ffff:10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "11.1.2.3", false),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3", false),
            (&[], &["2001:db8::/32"], "2001:db8::1", false),
            (&[], &["2001:db8::/32"], "1.2.3.4", true),
        ] {
            let access = IpAccess {
                allow: nets(allow),
                deny: nets(deny),
            };
            let found = is_allowed(&access, client.parse().unwrap());
            assert_eq!(found, expected, "{allow:?} {deny:?} {client}");
        }
    }
}
