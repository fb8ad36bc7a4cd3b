//! What the server's packets say of the commands that wait.

use super::message::{
    AFTER_DEFINITIONS, ASKS_FILE, BAD, BULK_EXECUTE, CHANGE_USER, DEFINITIONS, EOF, ERROR, EXECUTE, FETCH,
    FIELD_LIST, FILE, FIRST, Found, Half, PACKET, PREPARE, PREPARED, PREPARING, QUERY, ROWS, STATISTICS,
    byte, status, width,
};
use super::{Conn, DOES_NOT_ESCAPE, ESCAPES, Exchange, Io, PREPARED_NAME, Pending, REQUEST, RESPONSE};
use crate::db::{Error, UNKNOWN_ERROR, error_of};
use crate::l7::{Call, ROLE_CLIENT};

/// Bits of the server's status.
const MORE_RESULTS: u64 = 1 << 3;
const CURSOR: u64 = 1 << 6;
const NO_BACKSLASHES: u64 = 1 << 9;

/// What an error packet tells: a number, and since 4.1 a `#` and the SQLSTATE.
#[inline(always)]
fn error(text: [u64; 3], length: u32) -> Error {
    let has_sqlstate = length >= 9 && text[0] >> 24 & 255 == b'#'.into();
    if has_sqlstate { error_of(text[0] >> 32) } else { UNKNOWN_ERROR }
}

impl Conn {
    /// What a pass found in the server's direction.
    #[inline(always)]
    pub(super) fn answered<I: Io>(&mut self, io: &mut I, call: &Call, found: Found) {
        match found.event {
            BAD => self.end(io),
            PREPARED => self.complete(io, call, 0),
            PACKET => self.packet(io, call),
            _ => {}
        }
    }

    /// A packet of the server's that may end something.
    #[inline(always)]
    fn packet<I: Io>(&mut self, io: &mut I, call: &Call) {
        let text = self.text;
        let Half { length, seq, expect, columns, .. } = self.half[RESPONSE];
        let first = text[0] & 255;
        if self.waiting() == 0 {
            // Of the authentication, a marker behind a prepared statement, or the answer to something that was not seen.
            if first == 0 {
                self.note_status(status(text, length));
            }
            if self.role == ROLE_CLIENT {
                self.early = call.now;
            }
            return;
        }
        if self.tentative != 0 {
            let short = width(first);
            let plausible = match first {
                0 => length >= 7,
                EOF => false,
                ERROR => length >= 3,
                ASKS_FILE => true,
                _ => length == short || length == short + 1,
            };
            if seq != 1 || !plausible {
                return self.end(io);
            }
            self.tentative = 0;
            io.seen(u32::from(self.unconfirmed));
            self.unconfirmed = 0;
        }
        // MariaDB tells how far it is by errors of this number.
        let progress = text[0] >> 8 & 0xffff == 0xffff;
        if first == ERROR {
            if !progress {
                self.complete(io, call, error(text, length));
            }
            return;
        }
        match expect {
            FIRST => self.first_packet(io, call, text, length),
            DEFINITIONS | PREPARING => {
                if first == EOF && length == 5 {
                    return;
                }
                let left = columns.saturating_sub(1);
                self.half[RESPONSE].columns = left;
                if left == 0 && expect == PREPARING {
                    self.complete(io, call, 0);
                } else if left == 0 {
                    self.half[RESPONSE].expect = AFTER_DEFINITIONS;
                }
            }
            _ if first != EOF => self.half[RESPONSE].expect = ROWS,
            _ => {
                let status = status(text, length);
                self.note_status(status);
                let between = expect == AFTER_DEFINITIONS && length == 5;
                if between && status.unwrap_or(0) & CURSOR == 0 {
                    self.half[RESPONSE].expect = ROWS;
                } else {
                    self.end_result(io, call, status);
                }
            }
        }
    }

    /// The first packet of an answer, or of its next result.
    #[inline(always)]
    fn first_packet<I: Io>(&mut self, io: &mut I, call: &Call, text: [u64; 3], length: u32) {
        let command = *self.command_at(self.head);
        let first = text[0] & 255;
        if command == PREPARE && first == 0 && length >= 12 {
            let number = (text[0] >> 8) as u32;
            let definitions = (text[0] >> 40 & 0xffff) as u32 + (byte(text, 7) | byte(text, 8) << 8) as u32;
            let fingerprint = self.entry(self.head).fingerprint;
            io.define(PREPARED_NAME | u64::from(number), fingerprint);
            self.half[RESPONSE].columns = definitions;
            self.half[RESPONSE].expect = PREPARING;
            if definitions == 0 {
                self.complete(io, call, 0);
            }
            return;
        }
        if command == STATISTICS {
            return self.complete(io, call, 0);
        }
        if command == FETCH || command == FIELD_LIST {
            if first == EOF {
                return self.end_result(io, call, status(text, length));
            }
            self.half[RESPONSE].expect = ROWS;
            return;
        }
        if command == CHANGE_USER && first != 0 || first == ASKS_FILE {
            // The server asks for more: another password, or a file.
            if command == QUERY {
                self.half[REQUEST].expect = FILE;
            }
            return;
        }
        if first == EOF && matches!(command, QUERY | EXECUTE | BULK_EXECUTE | PREPARE) {
            // It stands behind the definitions of a prepared statement, which was complete without it.
            return;
        }
        if first == 0 && length >= 7 || first == EOF {
            let status = status(text, length);
            self.note_status(status);
            return self.end_result(io, call, status);
        }
        let size = width(first);
        let columns = if size == 1 { first } else { byte(text, 1) | byte(text, 2) << 8 };
        // MariaDB leaves out definitions that the client knows.
        let known = length == size + 1 && byte(text, size) == 0;
        self.half[RESPONSE].columns = columns as u32;
        self.half[RESPONSE].expect = if known { AFTER_DEFINITIONS } else { DEFINITIONS };
        if first == 0 || size > 3 {
            self.end(io);
        }
    }

    #[inline(always)]
    fn note_status(&mut self, status: Option<u64>) {
        if let Some(status) = status {
            self.escapes = if status & NO_BACKSLASHES == 0 { ESCAPES } else { DOES_NOT_ESCAPE };
        }
    }

    #[inline(always)]
    fn end_result<I: Io>(&mut self, io: &mut I, call: &Call, status: Option<u64>) {
        self.half[RESPONSE].expect = FIRST;
        if status.unwrap_or(0) & MORE_RESULTS == 0 {
            self.complete(io, call, 0);
        }
    }

    /// The first command that waits has its answer.
    #[inline(always)]
    fn complete<I: Io>(&mut self, io: &mut I, call: &Call, error: Error) {
        self.half[RESPONSE].expect = FIRST;
        self.half[RESPONSE].columns = 0;
        if self.waiting() == 0 {
            return;
        }
        let Pending { start, mut fingerprint } = *self.entry(self.head);
        if *self.command_at(self.head) == PREPARE {
            fingerprint = u64::from(PREPARE);
        }
        self.head = self.head.wrapping_add(1);
        io.record(self, &Exchange { fingerprint, start, end: call.now, error });
    }
}
