//! Connections to databases, each as an element of an array: what a pool of them is made of.

/// One connection of a client's. The element is free while it has no workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolConn {
    pub workload: u64,
    /// The remote end ([`crate::peer::Peer::id`]).
    pub peer: u64,
    /// An index into [`crate::db::SYSTEMS`].
    pub system: u32,
    /// 1 while a query waits for its answer.
    pub active: u32,
}

crate::pod!(PoolConn: 24);
