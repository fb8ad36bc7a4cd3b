//! The state machine's [`Io`] over bytes in memory, for tests and fuzzing.

extern crate alloc;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::message::{Found, Half, Pass, is_chain};
use super::{Call, Conn, Exchange, Io, Settle};
use crate::block::{BLOCK, Block};
use crate::events::Reason;
use crate::l7::{Direction, ROLE_CLIENT, ROLE_SERVER};
use crate::sql::{OTHER, Statement};

/// Payload in memory, findings in vectors.
pub struct Memory<'a> {
    block: Box<Block>,
    pass: Pass,
    statement: Box<Statement>,
    carried: Option<Box<Statement>>,
    names: Vec<(u64, u64)>,
    bytes: &'a [u8],
    /// Where in the call the block begins.
    block_at: u32,
    pub seen: u32,
    pub recorded: Vec<Exchange>,
    pub dropped: Vec<(Reason, u32)>,
    /// Fingerprints with their texts, in the order of statements.
    pub statements: Vec<(u64, String)>,
}

impl Default for Memory<'_> {
    fn default() -> Self {
        Self {
            block: Box::new(Block::new()),
            pass: Pass::EMPTY,
            statement: Box::new(Statement::new()),
            carried: None,
            names: Vec::new(),
            bytes: &[],
            block_at: 0,
            seen: 0,
            recorded: Vec::new(),
            dropped: Vec::new(),
            statements: Vec::new(),
        }
    }
}

impl Io for Memory<'_> {
    fn peek(&mut self, call: &Call) -> u64 {
        let mut word = 0;
        for (i, &byte) in self.bytes[call.done as usize..].iter().take(8).enumerate() {
            word |= u64::from(byte) << (8 * i);
        }
        word
    }
    fn fill(&mut self, call: &Call) -> bool {
        let pos = call.done.wrapping_sub(self.block_at);
        if pos >= self.pass.len {
            let bytes = &self.bytes[call.done as usize..];
            let len = bytes.len().min(BLOCK);
            // SAFETY: a block holds as many.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.block.start(), len) };
            self.block_at = call.done;
            self.pass.len = len as u32;
            self.pass.pos = 0;
        } else {
            self.pass.pos = pos;
        }
        self.pass.reach = call.total - self.block_at;
        true
    }
    fn is_chain(&mut self, total: u32) -> bool {
        self.pass.len == total && is_chain(&self.block, total)
    }
    fn parse(&mut self, half: &mut Half, is_request: bool) -> Found {
        self.pass.prepare(half, is_request);
        self.pass.run(&self.block, &mut self.statement);
        *half = self.pass.half;
        self.pass.out
    }
    fn save_statement(&mut self) -> bool {
        self.carried = Some(self.statement.clone());
        true
    }
    fn load_statement(&mut self) -> bool {
        let Some(carried) = self.carried.take() else { return false };
        self.statement = carried;
        true
    }
    fn fingerprint(&mut self) -> u64 {
        let fingerprint = self.statement.fingerprint();
        self.statements.push((fingerprint, String::from_utf8_lossy(self.statement.text()).into_owned()));
        fingerprint
    }
    fn define(&mut self, name: u64, fingerprint: u64) {
        self.names.retain(|(known, _)| *known != name);
        self.names.push((name, fingerprint));
    }
    fn lookup(&mut self, name: u64) -> u64 {
        self.names.iter().find(|(known, _)| *known == name).map_or(OTHER, |(_, fingerprint)| *fingerprint)
    }
    fn settle(&mut self, conn: &mut Conn, settle: &Settle) {
        conn.settle(self, settle);
    }
    fn seen(&mut self) {
        self.seen += 1;
    }
    fn record(&mut self, _: &Conn, exchange: &Exchange) {
        self.recorded.push(*exchange);
    }
    fn dropped(&mut self, reason: Reason, count: u32) {
        self.dropped.push((reason, count));
    }
}

impl<'a> Memory<'a> {
    /// Passes one call's bytes through a connection; it begins at `now` and ends a nanosecond later.
    ///
    /// # Panics
    /// When the state machine makes no progress, which is what tests and fuzzing are for.
    pub fn call(&mut self, conn: &mut Conn, direction: Direction, bytes: &'a [u8], now: u64) {
        if bytes.is_empty() || conn.ignores(direction) {
            return;
        }
        self.bytes = bytes;
        self.block_at = 0;
        self.pass.len = 0;
        let mut call = Call { direction, total: bytes.len() as u32, done: 0, begin: now, now: now + 1 };
        let mut steps = 0;
        while call.done < call.total {
            super::step(conn, self, &mut call);
            steps += 1;
            assert!(steps <= 4 * bytes.len() + 4, "no progress");
        }
        assert_eq!(call.done, call.total);
    }

    /// So many bytes pass by that nobody tells of, before the next call of this direction.
    pub fn unseen(&mut self, conn: &mut Conn, direction: Direction, count: u32, now: u64) {
        if conn.role == ROLE_SERVER || conn.role == ROLE_CLIENT {
            conn.pass_over(self, &Call { direction, total: 1, done: 0, begin: now, now }, count);
        }
    }

    /// How many were recorded.
    pub fn counted(&self) -> u32 {
        self.recorded.iter().map(|exchange| exchange.count).sum()
    }

    /// How many were dropped, whatever the reason.
    pub fn lost(&self) -> u32 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }
}
