//! A small DNS server and client on port 53, and how many lookups they make.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::metrics::Expected;
use crate::traffic::call_me;

const SERVER: &str = "vm-dns-server";
const CLIENT: &str = "vm-dns-client";
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 53);
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
/// What the server does not answer.
const IGNORED: &str = "ignored";

/// What the agent should have counted of so many rounds: in each, both types at once, and one each by three other ways; and a last one.
pub(crate) fn expected(rounds: u32) -> Vec<Expected> {
    let (a, aaaa) = (f64::from(4 * rounds + 1), f64::from(rounds));
    let mut expected = Vec::new();
    for (metric, service) in [
        ("dns_lookups_total", CLIENT),
        ("dns_lookup_duration_seconds_count", CLIENT),
        ("dns_server_queries_total", SERVER),
    ] {
        for (qtype, count) in [("A", a), ("AAAA", aaaa)] {
            let labels = [("service", service), ("qtype", qtype), ("rcode", "NXDOMAIN")];
            expected.push(Expected::of(metric, &labels, count));
        }
    }
    expected.push(Expected::of("dns_lookup_timeouts_total", &[("service", CLIENT)], 1.0));
    expected.push(Expected::of("dns_lookup_retransmits_total", &[("service", CLIENT)], 2.0));
    // It cannot tell the three from queries of three clients.
    expected.push(Expected::of("dns_server_unanswered_total", &[("service", SERVER)], 3.0));
    expected
}

/// Runs server and client to the client's end.
pub(crate) fn run(rounds: u32) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut server =
        Command::new(&own).arg("dns-server").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    BufReader::new(server.stdout.take().context("piped")?).read_line(&mut String::new())?;
    let client = Command::new(&own).args(["dns-client", &rounds.to_string()]).status();
    server.kill()?;
    server.wait()?;
    if !client?.success() {
        bail!("the DNS client failed");
    }
    Ok(())
}

/// Says that it is there and answers until it is killed: there is no such domain.
pub(crate) fn serve() -> Result<()> {
    call_me(SERVER);
    let udp = UdpSocket::bind(ADDRESS)?;
    let tcp = TcpListener::bind(ADDRESS)?;
    println!("ready");
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            stream
                .map_err(anyhow::Error::from)
                .and_then(answer)
                .unwrap_or_else(|error| eprintln!("vm-dns-server: {error:#}"));
        }
    });
    let mut message = [0; 512];
    loop {
        let (length, client) = udp.recv_from(&mut message)?;
        let query = message.get(..length).unwrap_or_default();
        if !query.windows(IGNORED.len()).any(|bytes| bytes == IGNORED.as_bytes()) {
            udp.send_to(&answered(query)?, client)?;
        }
    }
}

/// As many servers read: the length by itself, then the message.
fn answer(mut stream: TcpStream) -> Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    stream.write_all(&[&length[..], &answered(&query)?].concat())?;
    Ok(())
}

fn answered(query: &[u8]) -> Result<Vec<u8>> {
    let mut answer = query.to_vec();
    answer.get_mut(2..4).context("half a header")?.copy_from_slice(&[0x81, 0x83]);
    Ok(answer)
}

fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]);
    query.extend_from_slice(name.as_bytes());
    query.push(0);
    query.extend_from_slice(&qtype.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    query
}

/// Asks as C libraries do.
pub(crate) fn request(rounds: u32) -> Result<()> {
    call_me(CLIENT);
    let mut answer = [0; 512];
    for round in 0..rounds {
        let id = round as u16 * 4;
        let name = format!("name-{round}");
        let connected = socket()?;
        connected.connect(ADDRESS)?;
        // glibc: both types in one call.
        send_both(&connected, [&query(id, &name, TYPE_A), &query(id + 1, &name, TYPE_AAAA)])?;
        connected.recv(&mut answer)?;
        connected.recv(&mut answer)?;
        // Most others.
        connected.send(&query(id + 2, &name, TYPE_A))?;
        connected.recv(&mut answer)?;
        // musl: not connected.
        let unconnected = socket()?;
        unconnected.send_to(&query(id + 3, &name, TYPE_A), ADDRESS)?;
        unconnected.recv_from(&mut answer)?;
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let query = query(id, &name, TYPE_A);
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
        stream.read_exact(answer.get_mut(..query.len() + 2).context("a long name")?)?;
    }
    let socket = socket()?;
    for _ in 0..3 {
        socket.send_to(&query(7, IGNORED, TYPE_A), ADDRESS)?;
    }
    // An answer to this says that the server has read those.
    socket.send_to(&query(8, "last", TYPE_A), ADDRESS)?;
    socket.recv_from(&mut answer)?;
    Ok(())
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(socket)
}

/// Sends two messages by one `sendmmsg`.
fn send_both(socket: &UdpSocket, messages: [&[u8]; 2]) -> Result<()> {
    let mut pieces = messages
        .map(|bytes| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    // SAFETY: structs of integers and pointers, for which zero is a value.
    let mut headers: [libc::mmsghdr; 2] = unsafe { std::mem::zeroed() };
    for (header, piece) in headers.iter_mut().zip(&mut pieces) {
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: two headers, whose pieces live.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), 2, 0) };
    ensure!(sent == 2, "{sent} of two messages were sent: {}", std::io::Error::last_os_error());
    Ok(())
}
