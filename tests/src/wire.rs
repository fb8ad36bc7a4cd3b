//! Both ends of a connection in one hand: who writes what in how many pieces, and who reads it in how many, is decided
//! here and not by chance.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use crate::{PATIENCE, free_port};

/// A client's socket and its server's.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    /// How much one call may read.
    pub reads: usize,
}

/// A listener on a port that is a `destination`, and its name.
pub fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

impl Pair {
    pub fn open(listener: &TcpListener) -> Self {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { client, server, reads: 4096 }
    }

    /// Each piece is written by one call, and read by the server before the next one is.
    pub fn request(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.client.write_all(piece).unwrap();
            drain(&self.server, piece.len(), self.reads);
        }
    }

    /// The same for the way back.
    pub fn response(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.server.write_all(piece).unwrap();
            drain(&self.client, piece.len(), self.reads);
        }
    }

    /// What either says, the client where it is true.
    pub fn say(&mut self, turns: &[(bool, Vec<u8>)]) {
        for (from_client, bytes) in turns {
            if *from_client { self.request(&[bytes]) } else { self.response(&[bytes]) }
        }
    }

    /// The server reads this by `splice`, which no hook tells of.
    pub fn request_spliced(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).unwrap();
        splice(&self.server, bytes.len());
    }

    /// The same for the way back.
    pub fn response_spliced(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).unwrap();
        splice(&self.client, bytes.len());
    }

    /// A whole exchange, each message in one piece.
    pub fn exchange(&mut self, request: &[u8], response: &[u8]) {
        self.request(&[request]);
        self.response(&[response]);
    }

    /// A whole exchange, each message in one call that gathers it from several pieces of memory.
    pub fn gather(&mut self, request: &[&[u8]], response: &[&[u8]]) {
        for (mut from, to, pieces) in
            [(&self.client, &self.server, request), (&self.server, &self.client, response)]
        {
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let all = pieces.iter().map(|piece| piece.len()).sum();
            assert_eq!(from.write_vectored(&slices).unwrap(), all, "a short write");
            drain(to, all, self.reads);
        }
    }
}

/// Moves just so many bytes into a pipe.
fn splice(stream: &TcpStream, bytes: usize) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut left = bytes;
    while left > 0 {
        let (from, to, nowhere) = (stream.as_raw_fd(), writer.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: two live descriptors, and no offsets.
        let moved = unsafe { libc::splice(from, nowhere, to, nowhere, left, 0) };
        assert!(moved > 0, "splice: {}", std::io::Error::last_os_error());
        let moved = moved as usize;
        reader.read_exact(&mut vec![0; moved]).unwrap();
        left -= moved;
    }
}

/// Reads just so many bytes, by calls that each take what is there up to `most`.
fn drain(mut stream: &TcpStream, bytes: usize, most: usize) {
    let mut buffer = vec![0; most];
    let mut left = bytes;
    while left > 0 {
        let read = stream.read(&mut buffer[..left.min(most)]).unwrap();
        assert!(read > 0, "the connection ended {left} bytes early");
        left -= read;
    }
}
