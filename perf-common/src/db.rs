//! What the protocols of databases count.

use crate::histogram::{CELLS, Histogram};

/// The `db_system` of a [`DbKey`], by number.
pub const SYSTEMS: [&str; 3] = ["postgresql", "redis", "mysql"];
pub const POSTGRESQL: u8 = 0;
pub const REDIS: u8 = 1;
pub const MYSQL: u8 = 2;

/// The system whose protocol has this number among [`crate::l7`]'s.
#[inline(always)]
pub const fn system_of(protocol: u8) -> u8 {
    match protocol {
        crate::l7::REDIS => REDIS,
        crate::l7::MYSQL => MYSQL,
        _ => POSTGRESQL,
    }
}

/// The key of a cell.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DbKey {
    pub workload: u64,
    /// What was asked for, or [`crate::sql::OTHER`].
    pub fingerprint: u64,
    /// On the client's side; else 0.
    pub peer: u64,
    /// [`crate::l7::ROLE_SERVER`] or [`crate::l7::ROLE_CLIENT`].
    pub role: u8,
    /// 1 for an error.
    pub failed: u8,
    /// An index into [`SYSTEMS`].
    pub system: u8,
    pub pad: [u8; 5],
}

crate::pod!(DbKey: 32);

/// An element of the table of cells.
pub type DbSlot = crate::cells::Slot<DbKey, Histogram>;
crate::pod!(DbSlot: 32 + 8 * (1 + CELLS));

impl DbKey {
    /// The smaller parts of a key and how many queries there were, in one number.
    #[inline(always)]
    pub fn rest(system: u8, role: u8, failed: bool, count: u32) -> u64 {
        u64::from(role) | u64::from(failed) << 8 | u64::from(system) << 16 | u64::from(count) << 32
    }
}

/// What a prepared statement or a portal is found by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StatementKey {
    /// The socket's address.
    pub sk: u64,
    pub name: u64,
}

crate::pod!(StatementKey: 16);

impl crate::cells::Key for DbKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let rest = u64::from(self.role) | u64::from(self.failed) << 2 | u64::from(self.system) << 3;
        let all = self.workload ^ self.fingerprint.rotate_left(32) ^ self.peer.rotate_left(16) ^ rest;
        all.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload
            && self.fingerprint == other.fingerprint
            && self.peer == other.peer
            && self.role == other.role
            && self.failed == other.failed
            && self.system == other.system
    }
}
