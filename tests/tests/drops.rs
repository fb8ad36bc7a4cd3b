//! Dropped packets, as the counters of the network namespace have them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::net::UdpSocket;

use live_tests::space::{Space, snmp};
use live_tests::{Agent, free_port};
use socket2::SockRef;

const METRIC: &str = "network_packet_drops_total";

/// Sends datagrams to a port where nobody is.
fn knock(times: u32) {
    // Taken and let go.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Not connected: then the kernel's answers would become errors of its own.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..times {
        assert_eq!(socket.send_to(b"is anybody there?", closed).unwrap(), 17);
    }
}

#[test]
fn datagrams_to_a_closed_port_have_no_socket() {
    const TIMES: u32 = 1000;
    let agent = Agent::start();
    let space = Space::new();
    space.inside(|| {
        knock(TIMES);
        assert_eq!(snmp("Udp", "NoPorts"), f64::from(TIMES));
    });
    let netns = space.inode().to_string();
    agent.expect_all(&[
        (METRIC, &[("netns", &netns), ("reason", "no_socket")], f64::from(TIMES)),
        (METRIC, &[("netns", &netns)], f64::from(TIMES)),
    ]);
    agent.expect_no_loss("drops");
}

#[test]
fn a_full_receive_buffer_drops_what_the_kernel_says() {
    const SENT: usize = 2000;
    let agent = Agent::start();
    let space = Space::new();
    let (dropped, received) = space.inside(|| {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        SockRef::from(&server).set_recv_buffer_size(64 << 10).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..SENT {
            assert_eq!(client.send_to(&[0; 700], server.local_addr().unwrap()).unwrap(), 700);
        }
        server.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| server.recv(&mut [0; 700]).ok()).count();
        (snmp("Udp", "RcvbufErrors"), received)
    });
    assert!(received > 0 && dropped > 0.0, "{received} received, {dropped} dropped");
    assert_eq!(received as f64 + dropped, SENT as f64);
    let netns = space.inode().to_string();
    agent.expect_all(&[
        (METRIC, &[("netns", &netns), ("reason", "socket_rcvbuff")], dropped),
        (METRIC, &[("netns", &netns)], dropped),
    ]);
}

#[test]
fn the_hosts_own_namespace_is_called_so() {
    const TIMES: u32 = 200;
    let agent = Agent::start();
    let labels = [("netns", "host"), ("reason", "no_socket")];
    // Others may send something as well; between these readings there is at least what is ours, and at most all.
    let outer = snmp("Udp", "NoPorts");
    let before = agent.page().sum(METRIC, &labels);
    let inner = snmp("Udp", "NoPorts");
    knock(TIMES);
    let inner = snmp("Udp", "NoPorts") - inner;
    let counted = agent.page().sum(METRIC, &labels) - before;
    let outer = snmp("Udp", "NoPorts") - outer;
    assert!(inner >= f64::from(TIMES));
    assert!(counted >= inner && counted <= outer, "{counted}, not between {inner} and {outer}");
}

#[test]
fn a_refused_connection_is_no_lost_packet_of_another_namespace() {
    let agent = Agent::start();
    let space = Space::new();
    let port = free_port();
    let before = agent.page();
    space.inside(|| {
        for _ in 0..50 {
            std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        }
    });
    let netns = space.inode().to_string();
    agent.expect(METRIC, &[("netns", &netns), ("reason", "no_socket")], 50.0);
    let unknown =
        |page: &live_tests::Page| page.sum(METRIC, &[("netns", "unknown"), ("reason", "no_socket")]);
    assert_eq!(unknown(&agent.page()), unknown(&before));
}
