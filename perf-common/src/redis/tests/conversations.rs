use super::{Conversation, ask};

#[expect(clippy::too_many_lines, reason = "a list")]
pub(super) fn conversations() -> Vec<Conversation> {
    let client = |parts: &[&str]| (true, parts.iter().flat_map(|line| ask(line)).collect::<Vec<_>>());
    let server = |bytes: &str| (false, bytes.as_bytes().to_vec());
    let with = |turns, counted| Conversation { turns, counted, opaque: false };
    let ending = |turns, counted| Conversation { turns, counted, opaque: true };
    let large = "x".repeat(10_000);
    vec![
        with(
            vec![
                client(&["SET k v"]),
                server("+OK\r\n"),
                client(&["get k"]),
                server("$1\r\nv\r\n"),
                client(&["GET nothing"]),
                server("$-1\r\n"),
                client(&["INCR k"]),
                server("-ERR value is not an integer or out of range\r\n"),
                client(&["LRANGE l 0 -1"]),
                server("*3\r\n$1\r\na\r\n$0\r\n\r\n$-1\r\n"),
                client(&["EXEC"]),
                server("*-1\r\n"),
                client(&["KEYS x*"]),
                server("*0\r\n"),
                client(&["FROBNICATE a b"]),
                server("-ERR unknown command 'FROBNICATE', with args beginning with: 'a' 'b' \r\n"),
                client(&["A-VERB-THAT-NOBODY-HAS-EVER-HEARD-OF"]),
                server(":1\r\n"),
                client(&["DBSIZE"]),
                server(":1234567890123456789\r\n"),
            ],
            vec![
                ("DBSIZE", false, 1),
                ("EXEC", false, 1),
                ("GET", false, 2),
                ("INCR", true, 1),
                ("KEYS", false, 1),
                ("LRANGE", false, 1),
                ("SET", false, 1),
                ("other", false, 1),
                ("other", true, 1),
            ],
        ),
        // Pipelines, of one verb and of several, with errors in between; a transaction.
        with(
            vec![
                client(&["PING", "PING", "PING"]),
                server("+PONG\r\n+PONG\r\n"),
                server("+PONG\r\n"),
                client(&["SET k v", "INCR k", "INCR k", "GET k", "GET k"]),
                server("+OK\r\n-ERR no\r\n-ERR no\r\n$1\r\nv\r\n-ERR no\r\n"),
                client(&["MULTI", "INCR n", "NOSUCH", "LPUSH l a b c", "EXEC"]),
                server("+OK\r\n+QUEUED\r\n-ERR unknown\r\n+QUEUED\r\n*2\r\n:1\r\n-ERR inside\r\n"),
            ],
            vec![
                ("EXEC", false, 1),
                ("GET", false, 1),
                ("GET", true, 1),
                ("INCR", false, 1),
                ("INCR", true, 2),
                ("LPUSH", false, 1),
                ("MULTI", false, 1),
                ("PING", false, 3),
                ("SET", false, 1),
                ("other", true, 1),
            ],
        ),
        // Large values, and strings that look like the protocol.
        with(
            vec![
                client(&[&format!("SET k {large}"), "GET k"]),
                server(&format!("+OK\r\n$10000\r\n{large}\r\n")),
                client(&["SET k *1\r\n$4\r\nPING\r\n", "APPEND k \r\n"]),
                server("+OK\r\n:18\r\n"),
                client(&["GET k"]),
                server("$15\r\n-ERR\r\n$5\r\n*2\r\n>\r\n"),
                client(&["MGET a b"]),
                server(&format!("*2\r\n$10000\r\n{large}\r\n$3\r\n-a\r\r\n")),
            ],
            vec![("APPEND", false, 1), ("GET", false, 2), ("MGET", false, 1), ("SET", false, 2)],
        ),
        // RESP3: every type, pushes between and after, attributes, subscription on the same connection.
        with(
            vec![
                client(&["HELLO 3"]),
                server("%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*0\r\n"),
                client(&["GET a", "HGETALL h", "SMEMBERS s", "EXISTS x", "ZSCORE z m", "INFO"]),
                server(
                    "_\r\n%1\r\n+k\r\n%1\r\n:1\r\n~2\r\n#t\r\n#f\r\n~2\r\n+a\r\n$1\r\nb\r\n>2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n\
                     (3492890328409238509324850943850943825024385\r\n,1.23\r\n=8\r\ntxt:info\r\n",
                ),
                client(&["SUBSCRIBE a b"]),
                server(
                    ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n",
                ),
                server(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n-ERR\r\n"),
                client(&["SET k v", "FOO"]),
                server("|1\r\n+ttl\r\n*2\r\n:1\r\n-x\r\n+OK\r\n!8\r\nERR nope\r\n>1\r\n+x\r\n"),
            ],
            vec![
                ("EXISTS", false, 1),
                ("GET", false, 1),
                ("HELLO", false, 1),
                ("HGETALL", false, 1),
                ("INFO", false, 1),
                ("SET", false, 1),
                ("SMEMBERS", false, 1),
                ("ZSCORE", false, 1),
                ("other", true, 1),
            ],
        ),
        // Blocking commands.
        with(
            vec![
                client(&["BLPOP l 0"]),
                server("*2\r\n$1\r\nl\r\n$1\r\nx\r\n"),
                client(&["XREAD COUNT 2 BLOCK 500 STREAMS s $"]),
                server("*-1\r\n"),
                client(&["XREAD COUNT 2 STREAMS block 0"]),
                server("*-1\r\n"),
                client(&[
                    "xreadgroup group block c block 1 streams s >",
                    "XREADGROUP GROUP g block NOACK STREAMS s >",
                ]),
                server("*-1\r\n*-1\r\n"),
                client(&["WAIT 0 1", "LPOP l"]),
                server(":0\r\n$-1\r\n"),
                client(&["CLIENT ID", "CLIENT SETNAME reply"]),
                server(":7\r\n+OK\r\n"),
            ],
            vec![
                ("BLPOP!", false, 1),
                ("CLIENT", false, 2),
                ("LPOP", false, 1),
                ("WAIT!", false, 1),
                ("XREAD", false, 1),
                ("XREAD!", false, 1),
                ("XREADGROUP", false, 1),
                ("XREADGROUP!", false, 1),
            ],
        ),
        // Inline.
        with(
            vec![(true, b"PING\r\n\r\nping\r\nSET k v\n  ".to_vec()), server("+PONG\r\n+PONG\r\n+OK\r\n")],
            vec![("PING", false, 2), ("SET", false, 1)],
        ),
        // Where replies end.
        ending(
            vec![
                client(&["AUTH p", "SUBSCRIBE a b"]),
                server("+OK\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"),
                server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"),
                client(&["UNSUBSCRIBE", "PING"]),
                server("*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n+PONG\r\n"),
            ],
            vec![("AUTH", false, 1)],
        ),
        ending(
            vec![
                client(&["PING"]),
                server("+PONG\r\n"),
                client(&["MONITOR"]),
                server("+OK\r\n+17.3 [0 x] \"get\"\r\n"),
            ],
            vec![("PING", false, 1)],
        ),
        ending(
            vec![client(&["PING", "CLIENT REPLY OFF", "PING", "PING"]), server("+PONG\r\n")],
            vec![("PING", false, 1)],
        ),
    ]
}
