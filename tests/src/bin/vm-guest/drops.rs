//! Datagrams to a port where nobody is.

use std::net::UdpSocket;

use anyhow::Result;
use live_tests::space::snmp;

use crate::metrics::Page;
use crate::missed;

const TIMES: u32 = 50;

/// Sends them, and says how many of them the kernel counted.
pub(crate) fn run() -> Result<f64> {
    // Taken and let go.
    let closed = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let before = snmp("Udp", "NoPorts");
    for _ in 0..TIMES {
        socket.send_to(b"is anybody there?", closed)?;
    }
    Ok(snmp("Udp", "NoPorts") - before)
}

/// Compares. Where the kernel tells no reasons, what else it dropped counts under the same labels.
pub(crate) fn check(before: &Page, after: &Page, dropped: f64) {
    let metric = "network_packet_drops_total";
    let told = !after.values(metric, "reason").contains(&"unknown");
    let (reason, expected) =
        if told { ("no_socket", dropped.to_string()) } else { ("unknown", format!(">{}", dropped - 1.0)) };
    let labels = [("reason", reason), ("netns", "host")];
    let got = after.sum(metric, &labels) - before.sum(metric, &labels);
    let missed = missed(after, &["drops"]);
    println!(
        "@@COUNT {metric}{{reason=\"{reason}\",netns=\"host\"}} expected={expected} got={got} missed={missed}"
    );
}
