//! The caller's address: the peer, or the address that a trusted proxy reports.
//!
//! Only entries of `X-Forwarded-For` that trusted proxies wrote are believed: read from the right, the first address that is
//! not a trusted proxy is the caller. Entries further left may be invented by the caller.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::{
    extract::ConnectInfo,
    http::{Extensions, HeaderMap},
};
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The callers that may send webhooks, and the proxies whose reports are believed.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// `None`: any caller.
    pub allowed: Option<Vec<IpNet>>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Addresses {
    /// The caller's address; `None` if a trusted proxy wrote an invalid address.
    pub fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut caller = peer.to_canonical();
        let lines = headers.get_all(FORWARDED_FOR);
        // Several header lines mean the same as one with commas. They only iterate forwards.
        let lines: Vec<&[u8]> = lines.iter().map(axum::http::HeaderValue::as_bytes).collect();
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
            if !contains(&self.trusted_proxies, caller) {
                break;
            }
            caller = parse_entry(entry)?;
        }
        Some(caller)
    }

    /// Whether this caller may send webhooks. An unknown caller may only if any caller may.
    pub fn allows(&self, caller: Option<IpAddr>) -> bool {
        match (&self.allowed, caller) {
            (None, _) => true,
            (Some(allowed), Some(caller)) => contains(allowed, caller),
            (Some(_), None) => false,
        }
    }
}

/// The peer of the connection on which a request arrived.
pub(super) fn peer(extensions: &Extensions) -> IpAddr {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>();
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip())
}

/// The unit for limits per sender: an IPv4 address, or the /64 of an IPv6 address.
pub(super) fn account(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// An address with or without a port, in the formats that proxies write.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).ok()?.trim();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    let address: IpAddr = text.parse().ok().or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().expect("net")).collect()
    }

    fn caller(trusted: &[&str], peer: &str, lines: &[&str]) -> Option<String> {
        let addresses = Addresses { allowed: None, trusted_proxies: nets(trusted) };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, line.parse().expect("header"));
        }
        addresses.caller(peer.parse().expect("address"), &headers).map(|address| address.to_string())
    }

    #[test]
    fn without_trusted_proxies_the_peer_is_the_caller_whatever_it_claims() {
        assert_eq!(caller(&[], "192.0.2.1", &["203.0.113.9"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(caller(&["10.0.0.0/8"], "192.0.2.1", &["203.0.113.9"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(caller(&["10.0.0.0/8"], "192.0.2.1", &["garbage"]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn behind_trusted_proxies_the_rightmost_untrusted_entry_is_the_caller() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        for (lines, expected) in [
            (&["203.0.113.9"][..], "203.0.113.9"),
            (&["44.228.126.217, 203.0.113.9"], "203.0.113.9"),
            (&["44.228.126.217,203.0.113.9, 10.0.0.7 "], "203.0.113.9"),
            (&["44.228.126.217", "203.0.113.9", "10.0.0.7"], "203.0.113.9"),
            (&["not an address, 203.0.113.9"], "203.0.113.9"),
            (&["203.0.113.9:4711"], "203.0.113.9"),
            (&["[2001:db8::1]:4711, [fd00::1]"], "2001:db8::1"),
            (&["::ffff:203.0.113.9"], "203.0.113.9"),
            (&["10.0.0.9, 10.0.0.7"], "10.0.0.9"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(caller(trusted, "10.0.0.1", lines).as_deref(), Some(expected), "{lines:?}");
        }
        assert_eq!(caller(trusted, "::ffff:10.0.0.1", &["203.0.113.9"]).as_deref(), Some("203.0.113.9"));
    }

    #[test]
    fn a_caller_that_a_trusted_proxy_cannot_name_is_not_on_any_list() {
        for line in ["unknown", "", "203.0.113.9,", "203.0.113.9, _hidden"] {
            assert_eq!(caller(&["10.0.0.0/8"], "10.0.0.1", &[line]), None, "{line}");
        }
        let closed = Addresses { allowed: Some(nets(&["0.0.0.0/0", "::/0"])), ..Addresses::default() };
        assert!(!closed.allows(None));
        assert!(Addresses::default().allows(None));
    }

    #[test]
    fn the_allow_list_is_exact() {
        let svix =
            Addresses { allowed: Some(crate::clerk::addresses::SVIX.to_vec()), ..Addresses::default() };
        let allows = |address: &str| svix.allows(Some(address.parse().expect("address")));
        assert!(allows("52.215.16.239"));
        assert!(allows("2a05:d028:17:80ff::1"));
        assert!(!allows("52.215.16.240"));
        assert!(!allows("2a05:d028:17:8100::1"));
    }
}
