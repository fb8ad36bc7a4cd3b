//! The other end of a connection, bounded: an address and port for servers, a class of networks for everything else.

/// The remote end of a client's connection, as user space needs it to find a name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// IPv6, or IPv4 mapped into it, as four words in network byte order.
    pub address: [u32; 4],
    /// Host byte order; 0 for a class of networks.
    pub port: u32,
    /// One of the `CLASS_` constants.
    pub class: u32,
}

crate::pod!(Peer: 24);

pub const CLASS_PUBLIC: u32 = 1;
pub const CLASS_PRIVATE: u32 = 2;
pub const CLASS_LOOPBACK: u32 = 3;
pub const CLASS_LINK_LOCAL: u32 = 4;
/// What did not fit into the map of peers.
pub const CLASS_OTHER: u32 = 5;

/// `destination` for a class, e.g. where the remote port is an ephemeral one.
pub const fn class_name(class: u32) -> &'static str {
    match class {
        CLASS_PUBLIC => "public",
        CLASS_PRIVATE => "private",
        CLASS_LOOPBACK => "loopback",
        CLASS_LINK_LOCAL => "link_local",
        _ => "other",
    }
}

/// `::ffff:0:0/96`, the third word of a mapped IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Peer {
    /// An IPv4 peer; `address` in network byte order as the kernel keeps it, `port` in host order.
    #[inline(always)]
    pub const fn v4(address: u32, port: u16) -> Self {
        Self::v6([0, 0, MAPPED, address], port)
    }

    #[inline(always)]
    pub const fn v6(address: [u32; 4], port: u16) -> Self {
        Self { address, port: port as u32, class: class(address) }
    }

    /// The number that stands for this peer in a key. Small numbers are the classes.
    #[inline(always)]
    pub const fn id(&self) -> u64 {
        if self.port == 0 {
            return self.class as u64;
        }
        let high = (self.address[0] as u64) << 32 | self.address[1] as u64;
        let low = (self.address[2] as u64) << 32 | self.address[3] as u64;
        let hash = crate::workload::mix(crate::workload::mix(high ^ self.port as u64) ^ low);
        hash | 1 << 63
    }

    /// The same peer known by its class alone.
    #[inline(always)]
    pub const fn classed(&self) -> Self {
        Self { address: [0; 4], port: 0, class: self.class }
    }
}

#[inline(always)]
const fn class(address: [u32; 4]) -> u32 {
    if address[0] == 0 && address[1] == 0 && (address[2] == MAPPED || address[2] == 0) {
        let v4 = u32::from_be(address[3]);
        if address[2] == 0 && v4 == 1 || v4 >> 24 == 127 {
            return CLASS_LOOPBACK;
        }
        if v4 >> 24 == 10 || v4 >> 20 == 0xac1 || v4 >> 16 == 0xc0a8 || v4 >> 22 == 0x191 {
            return CLASS_PRIVATE;
        }
        if v4 >> 16 == 0xa9fe {
            return CLASS_LINK_LOCAL;
        }
        return CLASS_PUBLIC;
    }
    let top = u32::from_be(address[0]);
    if top >> 25 == 0x7e {
        return CLASS_PRIVATE;
    }
    if top >> 22 == 0x3fa {
        return CLASS_LINK_LOCAL;
    }
    CLASS_PUBLIC
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv6Addr};

    fn peer(text: &str) -> Peer {
        let v6: Ipv6Addr = match text.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let o = v6.octets();
        Peer::v6(
            core::array::from_fn(|i| {
                u32::from_ne_bytes([o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]])
            }),
            80,
        )
    }

    #[test]
    fn classes() {
        for (address, class) in [
            ("127.0.0.1", CLASS_LOOPBACK),
            ("::1", CLASS_LOOPBACK),
            ("10.1.2.3", CLASS_PRIVATE),
            ("172.16.0.1", CLASS_PRIVATE),
            ("172.31.255.255", CLASS_PRIVATE),
            ("172.32.0.1", CLASS_PUBLIC),
            ("192.168.1.1", CLASS_PRIVATE),
            ("100.64.0.1", CLASS_PRIVATE),
            ("100.128.0.1", CLASS_PUBLIC),
            ("169.254.169.254", CLASS_LINK_LOCAL),
            ("8.8.8.8", CLASS_PUBLIC),
            ("fd00::1", CLASS_PRIVATE),
            ("fe80::1", CLASS_LINK_LOCAL),
            ("2001:db8::1", CLASS_PUBLIC),
        ] {
            assert_eq!(peer(address).class, class, "{address}");
        }
    }

    #[test]
    fn ids_tell_address_and_port() {
        assert_ne!(peer("10.0.0.1").id(), peer("10.0.0.2").id());
        assert_ne!(peer("10.0.0.1").id(), Peer { port: 81, ..peer("10.0.0.1") }.id());
        assert_eq!(peer("10.0.0.1").classed().id(), u64::from(CLASS_PRIVATE));
        assert_eq!(Peer::v4(u32::from_ne_bytes([10, 0, 0, 1]), 80), peer("10.0.0.1"));
    }
}
