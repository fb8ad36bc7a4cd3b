//! UDP and UNIX sockets: as the test itself and the kernel count what it sends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixStream};

use live_tests::space::{Space, snmp};
use live_tests::{Agent, Labels, comm};

const ROUNDS: usize = 500;

#[test]
fn datagrams_are_those_of_the_kernels_own_counters() {
    for fallback in [false, true] {
        let agent = if fallback { Agent::fallback() } else { Agent::start() };
        let space = Space::new();
        let (sent, received) = space.inside(|| {
            let here = UdpSocket::bind("127.0.0.1:0").unwrap();
            let there = UdpSocket::bind("127.0.0.1:0").unwrap();
            for n in 0..ROUNDS {
                here.send_to(&vec![1; n % 100], there.local_addr().unwrap()).unwrap();
                // Looked at only, it is not received.
                there.peek_from(&mut [0; 200]).unwrap();
                there.recv_from(&mut [0; 200]).unwrap();
            }
            (snmp("Udp", "OutDatagrams"), snmp("Udp", "InDatagrams"))
        });
        assert_eq!((sent, received), (ROUNDS as f64, ROUNDS as f64), "somebody else sends");
        let bytes = (0..ROUNDS).map(|n| n % 100).sum::<usize>() as f64;
        check(&agent, "udp", ROUNDS as f64, bytes);
    }
}

#[test]
fn streams_and_datagrams_of_unix_sockets_are_counted() {
    for fallback in [false, true] {
        let agent = if fallback { Agent::fallback() } else { Agent::start() };
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (near, far) = UnixDatagram::pair().unwrap();
        for _ in 0..ROUNDS {
            here.write_all(&[1; 30]).unwrap();
            there.read_exact(&mut [0; 30]).unwrap();
            near.send(&[1; 70]).unwrap();
            far.recv(&mut [0; 100]).unwrap();
        }
        check(&agent, "unix", 2.0 * ROUNDS as f64, 100.0 * ROUNDS as f64);
    }
}

/// So much in each direction.
fn check(agent: &Agent, protocol: &str, operations: f64, bytes: f64) {
    let service = comm();
    let labels: Labels<'_> = &[("service", &service), ("protocol", protocol)];
    agent.expect_all(&[
        ("socket_operations_total", &[labels, &[("direction", "sent")]].concat(), operations),
        ("socket_operations_total", &[labels, &[("direction", "received")]].concat(), operations),
        ("socket_sent_bytes_total", labels, bytes),
        ("socket_received_bytes_total", labels, bytes),
    ]);
    agent.expect_no_loss("sockets");
}
