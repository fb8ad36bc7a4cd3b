//! Sockets in memory, for tests and fuzzing: what the BPF program does around the pure parts, with vectors for maps.

extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;

use super::flight::{Early, Ended, Event, Flight, Ledger, Outcome, role};
use super::stream::{Next, Stream};
use super::{ANSWER, Message, NEED, NONE, rcode_index};
use crate::bytes::Window;
use crate::events::Reason;

/// What was counted.
#[derive(Default)]
pub struct Books {
    pub seen: u32,
    pub recorded: Vec<Ended>,
    pub dropped: Vec<Reason>,
    /// Answers whose queries are still to come, by id and question.
    pub early: Vec<((u16, u64), Early)>,
}

impl Ledger for Books {
    fn seen(&mut self) {
        self.seen += 1;
    }
    fn record(&mut self, ended: &Ended) {
        self.recorded.push(*ended);
    }
    fn dropped(&mut self, reason: Reason) {
        self.dropped.push(reason);
    }
    fn post(&mut self, event: &Event<'_>) -> bool {
        let key = (event.message.txid, event.message.question);
        let rcode = u32::from(rcode_index(event.message.rcode));
        self.early.retain(|(have, _)| *have != key);
        self.early.push((key, Early { at: event.now, rcode, known: u32::from(event.known) }));
        true
    }
    fn claim(&mut self, event: &Event<'_>) -> Option<Early> {
        let key = (event.message.txid, event.message.question);
        let at = self.early.iter().position(|(have, _)| *have == key)?;
        Some(self.early.remove(at).1)
    }
}

/// One socket.
pub struct Memory {
    window: Box<Window>,
    pub books: Books,
    /// By transaction id and role.
    pub flights: Vec<((u16, u8), Flight)>,
    /// By direction: received, sent.
    streams: [(Stream, Vec<u8>); 2],
    /// Whether its port is 53.
    known: bool,
}

impl Default for Memory {
    fn default() -> Self {
        let mut window = Box::new(Window::new());
        for at in 0..512 {
            // SAFETY: `slot` masks its index. Left-overs that would mislead a parser that trusts them.
            unsafe { *window.slot(at) = b"\x01a\x02bc\0\0\x01\0\x01"[at % 10] };
        }
        Self {
            window,
            books: Books::default(),
            flights: Vec::new(),
            streams: <[(Stream, Vec<u8>); 2]>::default(),
            known: true,
        }
    }
}

impl Memory {
    /// A socket whose port says nothing.
    pub fn on_another_port() -> Self {
        Self { known: false, ..Self::default() }
    }

    fn show(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(NEED);
        for (at, &byte) in bytes[..len].iter().enumerate() {
            // SAFETY: `slot` masks its index.
            unsafe { *self.window.slot(at) = byte };
        }
        len
    }

    /// Reads a message and does nothing with it.
    pub fn read(&mut self, bytes: &[u8]) -> Message {
        let mut message = Message::EMPTY;
        let len = self.show(bytes);
        message.read(&self.window, len, bytes.len());
        message
    }

    /// A datagram is sent or received.
    pub fn datagram(&mut self, sent: bool, bytes: &[u8], now: u64) -> Outcome {
        let message = self.read(bytes);
        self.account(sent, &message, now)
    }

    fn account(&mut self, sent: bool, message: &Message, now: u64) -> Outcome {
        if message.kind == NONE {
            return Outcome::Stray;
        }
        let role = role(message.kind, sent);
        let event = Event { message, role, known: self.known, begin: now, now, window: &self.window };
        let key = (message.txid, role);
        let books = &mut self.books;
        let mut at = self.flights.iter().position(|(have, _)| *have == key);
        let outcome = if message.kind == ANSWER {
            let outcome = at.map_or(Outcome::Stray, |at| self.flights[at].1.answer(books, &event));
            if outcome == Outcome::Stray && event.is_early() {
                books.post(&event);
                return Outcome::Pending;
            }
            if outcome == Outcome::Stray {
                event.stray(books);
            }
            outcome
        } else if event.is_credible() {
            let at = *at.get_or_insert_with(|| {
                self.flights.push((key, Flight::EMPTY));
                self.flights.len() - 1
            });
            self.flights[at].1.ask(books, &event)
        } else {
            Outcome::Stray
        };
        self.flights.retain(|(_, flight)| !flight.is_empty());
        outcome
    }

    /// A call on a TCP connection moves these bytes.
    ///
    /// # Panics
    /// When the state machine makes no progress, which is what tests and fuzzing are for.
    pub fn call(&mut self, sent: bool, bytes: &[u8], now: u64) {
        let mut done = 0;
        let mut steps = 0;
        while done < bytes.len() && self.streams[usize::from(sent)].0.lost == 0 {
            steps += 1;
            assert!(steps <= 4 * bytes.len(), "no progress");
            let (stream, carry) = &mut self.streams[usize::from(sent)];
            match stream.next((bytes.len() - done) as u32) {
                Next::Skipped(skipped) => done += skipped as usize,
                Next::Prefix => {
                    stream.take_prefix(bytes[done]);
                    done += 1;
                }
                Next::Message(take) => {
                    carry.extend_from_slice(&bytes[done..done + take as usize]);
                    done += take as usize;
                    let have = carry.len() as u32;
                    if stream.suffices(have) {
                        let whole = core::mem::take(carry);
                        let total = usize::from(stream.length);
                        let len = self.show(&whole);
                        let mut message = Message::EMPTY;
                        message.read(&self.window, len, total);
                        self.streams[usize::from(sent)].0.done(have, message.kind != NONE);
                        self.account(sent, &message, now);
                    }
                }
            }
        }
    }

    /// What the sweeper would do at this time.
    pub fn expire(&mut self, now: u64, limit: u64) {
        for (_, flight) in &mut self.flights {
            flight.expire(&mut self.books, now, limit);
        }
        self.flights.retain(|(_, flight)| !flight.is_empty());
        let early = core::mem::take(&mut self.books.early);
        for (key, early) in early {
            if now.saturating_sub(early.at) <= limit {
                self.books.early.push((key, early));
            } else if early.known != 0 {
                self.books.seen += 1;
                self.books.dropped.push(Reason::NoRequest);
            }
        }
    }
}
