//! DNS over TCP: where in a direction's bytes the messages stand. Each has its length in two bytes before it.

use super::{HEAD, NEED};

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Bytes of a message whose question has been read that are still to come.
    pub skip: u32,
    /// The length of the message being read, as far as it was read.
    pub length: u16,
    /// Bytes of that message that are kept because their call ended.
    pub carried: u16,
    /// How many bytes of the length were read.
    pub prefix: u8,
    /// 1 once a message was read: what follows is framed as well.
    pub synced: u8,
    /// 1 where the framing is not known, as on a connection that began before the agent.
    pub lost: u8,
    pub pad: u8,
    pub reserved: u32,
}

crate::pod!(Stream: 16);

/// What comes next in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// So many bytes were passed over.
    Skipped(u32),
    /// One byte of the length is to be read and given to [`Stream::take_prefix`].
    Prefix,
    /// So many bytes of the message are to be read, behind those that were carried.
    Message(u32),
}

impl Stream {
    pub const EMPTY: Self =
        Self { skip: 0, length: 0, carried: 0, prefix: 0, synced: 0, lost: 0, pad: 0, reserved: 0 };

    /// What to do with a call of which `rest` bytes (more than none) are left.
    #[inline(always)]
    pub fn next(&mut self, rest: u32) -> Next {
        if self.skip != 0 {
            let skipped = if self.skip < rest { self.skip } else { rest };
            self.skip -= skipped;
            return Next::Skipped(skipped);
        }
        if self.prefix < 2 {
            return Next::Prefix;
        }
        let missing = self.wanted().saturating_sub(u32::from(self.carried));
        Next::Message(if missing < rest { missing } else { rest })
    }

    /// How many bytes of the message decide.
    #[inline(always)]
    fn wanted(&self) -> u32 {
        let length = u32::from(self.length);
        if length < NEED as u32 { length } else { NEED as u32 }
    }

    #[inline(always)]
    pub fn take_prefix(&mut self, byte: u8) {
        self.length = self.length << 8 | u16::from(byte);
        self.prefix += 1;
        if self.prefix == 2 && (self.length as usize) < HEAD {
            self.lost = 1;
        }
    }

    /// `have` bytes of the message, the carried ones among them, are there: whether they suffice.
    #[inline(always)]
    pub fn suffices(&mut self, have: u32) -> bool {
        if have < self.wanted() {
            self.carried = have as u16;
            return false;
        }
        true
    }

    /// The message was read (`is_dns`) or was none, from `have` of its bytes.
    #[inline(always)]
    pub fn done(&mut self, have: u32, is_dns: bool) {
        self.skip = u32::from(self.length).saturating_sub(have);
        self.length = 0;
        self.carried = 0;
        self.prefix = 0;
        if is_dns {
            self.synced = 1;
        } else if self.synced == 0 {
            self.lost = 1;
        }
    }
}
