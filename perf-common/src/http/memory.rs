//! The state machine's [`Io`] over bytes in memory, for tests and fuzzing.

extern crate alloc;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::parse::{self, Parsed};
use super::{Call, Conn, Direction, Exchange, Half, Io, ROLE_CLIENT, ROLE_SERVER};
use crate::bytes::{WINDOW, Window};
use crate::events::Reason;

/// Payload in memory, findings in vectors.
pub struct Memory<'a> {
    pub window: Box<Window>,
    pub bytes: &'a [u8],
    pub carry: [Vec<u8>; 2],
    pub seen: u32,
    pub recorded: Vec<Exchange>,
    pub dropped: Vec<(Reason, u32)>,
    pub routes: Vec<(u64, String)>,
}

impl Io for Memory<'_> {
    fn parse(&mut self, half: &mut Half, is_request: bool, answered: u8, len: usize, reach: u32) -> Parsed {
        let mut pass = parse::Pass::EMPTY;
        pass.prepare(half, is_request, answered, len, reach);
        pass.run(&self.window);
        *half = pass.half;
        pass.out
    }
    fn read(&mut self, offset: u32, at: usize, most: usize) -> usize {
        let bytes = &self.bytes[offset as usize..][..most];
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: `slot` masks its index.
            unsafe { *self.window.slot(at + i) = byte };
        }
        most
    }
    fn load_carry(&mut self, direction: Direction, len: usize) -> bool {
        let carry = self.carry[direction as usize].clone();
        assert_eq!(carry.len(), len);
        for (i, &byte) in carry.iter().enumerate() {
            // SAFETY: `slot` masks its index.
            unsafe { *self.window.slot(i) = byte };
        }
        true
    }
    fn save_carry(&mut self, direction: Direction, len: usize) -> bool {
        assert!(len <= WINDOW);
        self.carry[direction as usize] = self.window.get(0, len).to_vec();
        true
    }
    fn seen(&mut self) {
        self.seen += 1;
    }
    fn route(&mut self, _: &mut Conn, route: u64, at: usize, len: usize) -> u64 {
        let mut text = Vec::new();
        crate::route::describe(self.window.get(at, len), 0, |part| text.extend_from_slice(part));
        self.routes.push((route, String::from_utf8_lossy(&text).into_owned()));
        route
    }
    fn record(&mut self, _: &Conn, exchange: &Exchange) {
        self.recorded.push(*exchange);
    }
    fn dropped(&mut self, reason: Reason, count: u32) {
        self.dropped.push((reason, count));
    }
}

impl Default for Memory<'_> {
    fn default() -> Self {
        let mut window = Box::new(Window::new());
        for at in 0..WINDOW {
            // SAFETY: `slot` masks its index. Left-overs that would mislead a parser that trusts them.
            unsafe { *window.slot(at) = b"\r\n\r\nContent-Length: 7\r\n"[at % 23] };
        }
        Self {
            window,
            bytes: &[],
            carry: <[Vec<u8>; 2]>::default(),
            seen: 0,
            recorded: Vec::new(),
            dropped: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl<'a> Memory<'a> {
    /// Passes one call's bytes through a connection.
    ///
    /// # Panics
    /// When the state machine makes no progress, which is what tests and fuzzing are for.
    pub fn call(&mut self, conn: &mut Conn, direction: Direction, bytes: &'a [u8], now: u64) {
        if bytes.is_empty() || conn.ignores(direction) {
            return;
        }
        self.bytes = bytes;
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

    /// Requests that were dropped, whatever the reason.
    pub fn lost(&self) -> u32 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }
}
