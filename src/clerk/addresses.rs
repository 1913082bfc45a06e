//! The addresses that Svix sends from.
//!
//! Svix does not guarantee static addresses on every plan, so the allow-list is opt-in and never replaces the signature. Source:
//! <https://docs.svix.com/receiving/source-ips>.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Svix's published source addresses: US, us-east, and EU, from which Clerk has been seen sending.
pub const SVIX: [IpNet; 12] = [
    host(44, 228, 126, 217),
    host(50, 112, 21, 217),
    host(52, 24, 126, 164),
    host(54, 148, 139, 208),
    block([0x2600, 0x1f24, 0x64, 0x8000]),
    host(54, 164, 207, 221),
    host(54, 90, 7, 123),
    block([0x2600, 0x1f28, 0x37, 0x4000]),
    host(52, 215, 16, 239),
    host(54, 216, 8, 72),
    host(63, 33, 109, 123),
    block([0x2a05, 0xd028, 0x17, 0x8000]),
];

const fn host(a: u8, b: u8, c: u8, d: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), 32))
}

/// The /56 that begins with these groups.
const fn block([a, b, c, d]: [u16; 4]) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), 56))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_reads_as_svix_publishes_it() {
        assert_eq!(SVIX[0].to_string(), "44.228.126.217/32");
        assert_eq!(SVIX[4].to_string(), "2600:1f24:64:8000::/56");
        assert_eq!(SVIX[7].to_string(), "2600:1f28:37:4000::/56");
        assert_eq!(SVIX[11].to_string(), "2a05:d028:17:8000::/56");
    }
}
