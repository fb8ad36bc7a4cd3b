//! The protocols that the agent understands, in their shortest words.

/// What opens a connection, a request and its response, and what counts them at a client.
pub struct Protocol {
    pub probe: &'static str,
    pub histogram: &'static str,
    /// Who says what: the client, or the server.
    pub hello: Vec<(bool, Vec<u8>)>,
    pub request: Vec<u8>,
    pub response: Vec<u8>,
}

pub fn protocols() -> [Protocol; 4] {
    let db = "db_query_duration_seconds";
    let packet = |number: u8, body: &[u8]| [&[body.len() as u8, 0, 0, number], body].concat();
    let greeting =
        b"\x0a8.0.0\0\x01\0\0\0saltsalt\0\xff\xf7\x21\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0saltsaltsalt\0";
    let login = [b"\x05\xa2\x08\0\0\0\0\x01!".as_slice(), &[0; 23], b"me\0\0"].concat();
    [
        Protocol {
            probe: "http",
            histogram: "http_client_request_duration_seconds",
            hello: vec![],
            request: b"GET /items HTTP/1.1\r\n\r\n".to_vec(),
            response: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
        },
        Protocol {
            probe: "postgres",
            histogram: db,
            hello: vec![
                (true, b"\0\0\0\x11\0\x03\0\0user\0me\0\0".to_vec()),
                (false, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I".to_vec()),
            ],
            request: b"Q\0\0\0\x0dselect 1\0".to_vec(),
            response: b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I".to_vec(),
        },
        Protocol {
            probe: "redis",
            histogram: db,
            hello: vec![],
            request: b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".to_vec(),
            response: b"$5\r\nvalue\r\n".to_vec(),
        },
        Protocol {
            probe: "mysql",
            histogram: db,
            hello: vec![
                (false, packet(0, greeting)),
                (true, packet(1, &login)),
                (false, packet(2, b"\0\0\0\x02\0\0\0")),
            ],
            request: packet(0, b"\x03delete from t"),
            response: packet(1, b"\0\x01\0\x02\0\0\0"),
        },
    ]
}
