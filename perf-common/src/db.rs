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

/// How a query ended: 0 is well.
pub type Error = u16;
/// An error whose SQLSTATE is not known.
pub const UNKNOWN_ERROR: Error = 1;

/// The error of a SQLSTATE that begins with these bytes, the first one lowest: its class is the first two of them. The others
/// are not kept, because they make a few hundred series of one.
#[inline(always)]
#[must_use]
pub const fn error_of(sqlstate: u64) -> Error {
    const fn digit(byte: u8) -> bool {
        byte.wrapping_sub(b'0') < 10 || byte.wrapping_sub(b'A') < 26
    }
    let (one, two) = ((sqlstate & 255) as u8, (sqlstate >> 8 & 255) as u8);
    if digit(one) && digit(two) { one as Error | (two as Error) << 8 } else { UNKNOWN_ERROR }
}

/// The class of an error's SQLSTATE, as in `23` for a constraint that was violated; `None` where it is not known.
#[must_use]
pub fn sqlstate_class(error: Error) -> Option<[u8; 2]> {
    (error > UNKNOWN_ERROR).then(|| error.to_le_bytes())
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
    /// An index into [`SYSTEMS`].
    pub system: u8,
    pub error: Error,
    pub pad: u32,
}

crate::pod!(DbKey: 32);

/// An element of the table of cells.
pub type DbSlot = crate::cells::Slot<DbKey, Histogram>;
crate::pod!(DbSlot: 32 + 8 * (1 + CELLS));

impl DbKey {
    /// The smaller parts of a key and how many queries there were, in one number.
    #[inline(always)]
    pub fn rest(system: u8, role: u8, error: Error, count: u32) -> u64 {
        u64::from(role) | u64::from(system) << 8 | u64::from(error) << 16 | u64::from(count) << 32
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
        let rest = u64::from(self.role) | u64::from(self.system) << 2 | u64::from(self.error) << 8;
        let all = self.workload ^ self.fingerprint.rotate_left(32) ^ self.peer.rotate_left(16) ^ rest;
        all.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload
            && self.fingerprint == other.fingerprint
            && self.peer == other.peer
            && self.role == other.role
            && self.error == other.error
            && self.system == other.system
    }
}
