//! The commands that have a name of their own in a metric, and what is special about some of them.

use crate::block::Block;
use crate::bytes::{low, opaque};

/// The label of each verb, in the order of its number. A name that stands twice is another command the second time: it blocks
/// (`XREAD BLOCK`), or it changes what follows (`CLIENT REPLY`).
#[rustfmt::skip]
pub const VERBS: [&str; 246] = [
    "other", "ACL", "APPEND", "ASKING", "AUTH", "BGSAVE", "BITCOUNT", "BITFIELD", "BITFIELD_RO", "BITOP", "BITPOS",
    "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN", "CLIENT", "CLIENT",
    "CLUSTER", "COMMAND", "CONFIG", "COPY", "DBSIZE", "DEBUG", "DECR", "DECRBY", "DEL", "DISCARD", "DUMP", "ECHO",
    "EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "EXEC", "EXISTS", "EXPIRE", "EXPIREAT", "FCALL", "FCALL_RO",
    "FLUSHALL", "FLUSHDB", "FUNCTION", "GEOADD", "GEODIST", "GEOHASH", "GEOPOS", "GEORADIUS", "GEORADIUSBYMEMBER",
    "GEORADIUS_RO", "GEOSEARCH", "GEOSEARCHSTORE", "GET", "GETBIT", "GETDEL", "GETEX", "GETRANGE", "GETSET",
    "HDEL", "HELLO", "HEXISTS", "HEXPIRE", "HGET", "HGETALL", "HGETDEL", "HGETEX", "HINCRBY", "HINCRBYFLOAT",
    "HKEYS", "HLEN", "HMGET", "HMSET", "HPERSIST", "HPEXPIRE", "HPTTL", "HRANDFIELD", "HSCAN", "HSET", "HSETEX",
    "HSETNX", "HSTRLEN", "HTTL", "HVALS", "INCR", "INCRBY", "INCRBYFLOAT", "INFO", "KEYS", "LCS", "LINDEX",
    "LINSERT", "LLEN", "LMOVE", "LMPOP", "LPOP", "LPOS", "LPUSH", "LPUSHX", "LRANGE", "LREM", "LSET", "LTRIM",
    "MEMORY", "MGET", "MIGRATE", "MONITOR", "MOVE", "MSET", "MSETNX", "MULTI", "OBJECT", "PERSIST", "PEXPIRE",
    "PEXPIREAT", "PFADD", "PFCOUNT", "PFMERGE", "PING", "PSETEX", "PSUBSCRIBE", "PSYNC", "PTTL", "PUBLISH",
    "PUBSUB", "PUNSUBSCRIBE", "QUIT", "RANDOMKEY", "READONLY", "READWRITE", "RENAME", "RENAMENX", "REPLCONF",
    "RESET", "RESTORE", "ROLE", "RPOP", "RPOPLPUSH", "RPUSH", "RPUSHX", "SADD", "SAVE", "SCAN", "SCARD", "SCRIPT",
    "SDIFF", "SDIFFSTORE", "SELECT", "SET", "SETBIT", "SETEX", "SETNX", "SETRANGE", "SHUTDOWN", "SINTER",
    "SINTERCARD", "SINTERSTORE", "SISMEMBER", "SLOWLOG", "SMEMBERS", "SMISMEMBER", "SMOVE", "SORT", "SORT_RO",
    "SPOP", "SPUBLISH", "SRANDMEMBER", "SREM", "SSCAN", "SSUBSCRIBE", "STRLEN", "SUBSCRIBE", "SUNION",
    "SUNIONSTORE", "SUNSUBSCRIBE", "SYNC", "TIME", "TOUCH", "TTL", "TYPE", "UNLINK", "UNSUBSCRIBE", "UNWATCH",
    "WAIT", "WAITAOF", "WATCH", "XACK", "XADD", "XAUTOCLAIM", "XCLAIM", "XDEL", "XGROUP", "XINFO", "XLEN",
    "XPENDING", "XRANGE", "XREAD", "XREAD", "XREADGROUP", "XREADGROUP", "XREVRANGE", "XTRIM", "ZADD", "ZCARD",
    "ZCOUNT", "ZDIFF", "ZDIFFSTORE", "ZINCRBY", "ZINTER", "ZINTERCARD", "ZINTERSTORE", "ZLEXCOUNT", "ZMPOP",
    "ZMSCORE", "ZPOPMAX", "ZPOPMIN", "ZRANDMEMBER", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANGESTORE",
    "ZRANK", "ZREM", "ZREMRANGEBYLEX", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZREVRANGE", "ZREVRANGEBYLEX",
    "ZREVRANGEBYSCORE", "ZREVRANK", "ZSCAN", "ZSCORE", "ZUNION", "ZUNIONSTORE", "JSON.GET", "JSON.SET", "JSON.DEL",
    "JSON.MGET", "FT.SEARCH", "FT.AGGREGATE", "FT.CREATE", "BF.ADD", "BF.EXISTS", "TS.ADD",
];

/// The number of whatever is not in the table.
pub const OTHER: u8 = 0;
/// Longer names are not looked at; the longest in the table has 17.
pub const LONGEST: u32 = 24;

/// In [`class`]: it waits until something happens, or for a timeout.
pub const BLOCKING: u8 = 1;
/// The connection's replies are messages from now on, unless it speaks RESP3.
pub const SUBSCRIBES: u8 = 2;
/// What follows is no longer request and reply.
pub const STREAMS: u8 = 4;
/// The connection may speak another version of the protocol from now on.
pub const GREETS: u8 = 8;
/// One of its arguments makes it the next verb in the table.
pub const OPTIONS: u8 = 16;
/// Without an array around it, it says nothing about the protocol: others begin like this, too.
pub const COMMON: u8 = 32;

/// Other protocols have it as well, with another answer.
pub const PING: u8 = number("PING");
const CLIENT: u8 = number("CLIENT");
const XREAD: u8 = number("XREAD");
const XREADGROUP: u8 = number("XREADGROUP");

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

const fn one_of(name: &str, names: &[&str]) -> bool {
    let mut i = 0;
    while i < names.len() && !same(name, names[i]) {
        i += 1;
    }
    i < names.len()
}

/// The first verb of this name; for constants.
const fn number(name: &str) -> u8 {
    let mut i = 0;
    while !same(VERBS[i], name) {
        i += 1;
    }
    i as u8
}

static CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 1;
    while i < VERBS.len() {
        let name = VERBS[i];
        let again = same(VERBS[i - 1], name);
        if again {
            table[i] = if same(name, "CLIENT") { STREAMS } else { BLOCKING };
        } else if one_of(name, &["CLIENT", "XREAD", "XREADGROUP"]) {
            table[i] = OPTIONS;
        } else if one_of(
            name,
            &[
                "BLMOVE",
                "BLMPOP",
                "BLPOP",
                "BRPOP",
                "BRPOPLPUSH",
                "BZMPOP",
                "BZPOPMAX",
                "BZPOPMIN",
                "WAIT",
                "WAITAOF",
            ],
        ) {
            table[i] = BLOCKING;
        } else if one_of(
            name,
            &["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"],
        ) {
            table[i] = SUBSCRIBES;
        } else if one_of(name, &["MONITOR", "SYNC", "PSYNC"]) {
            table[i] = STREAMS;
        } else if one_of(name, &["HELLO", "RESET"]) {
            table[i] = GREETS;
        }
        if one_of(name, &["GET", "QUIT", "AUTH", "TYPE", "SELECT", "SUBSCRIBE"]) {
            // HTTP, SMTP, POP3, FTP, SQL, STOMP.
            table[i] |= COMMON;
        }
        i += 1;
    }
    table
};

/// What is special about a verb.
#[inline(always)]
pub fn class(verb: u8) -> u8 {
    // SAFETY: a u8 cannot exceed the table's 256 entries.
    unsafe { *CLASSES.as_ptr().add(opaque(u64::from(verb)) as usize & 255) }
}

/// Whether a command with this verb is meant to wait: its duration says nothing about the server.
#[must_use]
#[inline(always)]
pub fn is_blocking(verb: u8) -> bool {
    class(verb) & BLOCKING != 0
}

/// The first 24 bytes of a word, the first one lowest; zero behind its end.
pub type Text = [u64; 3];

/// Letters in upper case. Other bytes change as well, in the table like here.
const CASE: u64 = 0xdfdf_dfdf_dfdf_dfdf;

const SLOTS: usize = 4096;
/// Chosen so that no two verbs meet in a slot. Where a new verb breaks that, any odd number that does not will do.
const MULTIPLIER: u64 = 0x6f09_98fb_0d4b_b977;

#[inline(always)]
const fn slot(text: Text) -> usize {
    let word = text[0] ^ text[1].rotate_left(13) ^ text[2].rotate_left(29);
    (word.wrapping_mul(MULTIPLIER) >> 52) as usize
}

const fn folded(name: &str) -> Text {
    let name = name.as_bytes();
    let mut text = [0; 3];
    let mut i = 0;
    while i < name.len() {
        text[i / 8] |= (name[i] as u64 & 0xdf) << (8 * (i % 8));
        i += 1;
    }
    text
}

static TEXTS: [[u64; 4]; 256] = {
    let mut table = [[0; 4]; 256];
    let mut i = 1;
    while i < VERBS.len() {
        let text = folded(VERBS[i]);
        table[i] = [text[0], text[1], text[2], 0];
        i += 1;
    }
    table
};

static INDEX: [u8; SLOTS] = {
    let mut table = [OTHER; SLOTS];
    let mut i = 1;
    while i < VERBS.len() {
        if !same(VERBS[i - 1], VERBS[i]) {
            let at = slot(folded(VERBS[i]));
            assert!(table[at] == OTHER, "two verbs meet: another multiplier is needed");
            table[at] = i as u8;
        }
        i += 1;
    }
    table
};

/// The verb with this name, in any case.
#[inline(always)]
pub fn find(text: Text) -> u8 {
    let text = [text[0] & CASE, text[1] & CASE, text[2] & CASE];
    // SAFETY: masked to the table's entries.
    let verb = unsafe { *INDEX.as_ptr().add(opaque(slot(text) as u64) as usize & (SLOTS - 1)) };
    // SAFETY: a u8 cannot exceed the table's 256 entries.
    let [first, second, third, _] = unsafe { *TEXTS.as_ptr().add(opaque(u64::from(verb)) as usize & 255) };
    let differs = (first ^ text[0]) | (second ^ text[1]) | (third ^ text[2]);
    if differs == 0 { verb } else { OTHER }
}

/// The verb in a block, of `len` bytes, at most [`LONGEST`].
#[inline(always)]
pub fn read(block: &Block, at: u32, len: u32) -> u8 {
    find([
        block.word(at) & kept(len),
        block.word(at + 8) & kept(len.wrapping_sub(8)),
        block.word(at + 16) & kept(len.wrapping_sub(16)),
    ])
}

/// The low `len` bytes of a word: none below zero. By table, or each would be paths of its own.
#[inline(always)]
fn kept(len: u32) -> u64 {
    static KEPT: [u64; 64] = {
        let mut table = [0; 64];
        let mut i = 0;
        while i < 32 {
            table[i] = low(i as u32);
            i += 1;
        }
        table
    };
    // SAFETY: masked to the table's entries; what is negative lies in its upper half.
    unsafe { *KEPT.as_ptr().add(opaque(u64::from(len)) as usize & 63) }
}

/// What an argument, number `index`, says about a verb with [`OPTIONS`]: the verb it is now, and whether more may be said.
#[inline(always)]
pub fn option(verb: u8, index: u32, text: Text) -> (u8, bool) {
    let word = text[0] & CASE;
    let nothing_else = text[1] | text[2] == 0;
    if verb == CLIENT {
        let replies = word == folded("REPLY")[0] && nothing_else;
        return (verb + u8::from(replies), false);
    }
    if verb == XREADGROUP && index < 4 {
        return (verb, true);
    }
    if (verb == XREAD || verb == XREADGROUP) && nothing_else {
        if word == folded("BLOCK")[0] {
            return (verb + 1, false);
        }
        return (verb, word != folded("STREAMS")[0]);
    }
    (verb, verb == XREAD || verb == XREADGROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> Text {
        let mut text = [0; 3];
        for (i, byte) in name.bytes().enumerate() {
            text[i / 8] |= u64::from(byte) << (8 * (i % 8));
        }
        text
    }

    #[test]
    fn every_verb_is_found_in_any_case_and_nothing_else_is() {
        for (number, name) in VERBS.iter().enumerate().skip(1) {
            if VERBS[number - 1] == *name {
                continue;
            }
            assert_eq!(usize::from(find(text(name))), number, "{name}");
            assert_eq!(usize::from(find(text(&name.to_lowercase()))), number, "{name}");
            assert_eq!(
                find(text(&format!("{name}X"))),
                if VERBS.contains(&format!("{name}X").as_str()) {
                    find(text(&format!("{name}X")))
                } else {
                    OTHER
                }
            );
        }
        for name in ["", "OTHER", "NOSUCH", "SE", "G", "123"] {
            assert_eq!(find(text(name)), OTHER, "{name}");
        }
        assert!(VERBS.iter().all(|name| name.len() <= LONGEST as usize));
    }

    #[test]
    fn options_make_another_verb() {
        for (verb, index, argument, expected) in [
            (XREAD, 1, "block", (XREAD + 1, false)),
            (XREAD, 1, "COUNT", (XREAD, true)),
            (XREAD, 1, "streams", (XREAD, false)),
            (XREADGROUP, 2, "block", (XREADGROUP, true)),
            (XREADGROUP, 4, "BLOCK", (XREADGROUP + 1, false)),
            (CLIENT, 1, "reply", (CLIENT + 1, false)),
            (CLIENT, 1, "REPLYING", (CLIENT, false)),
            (CLIENT, 1, "ID", (CLIENT, false)),
        ] {
            assert_eq!(option(verb, index, text(argument)), expected, "{argument}");
        }
        assert_eq!(class(XREAD + 1), BLOCKING);
        assert_eq!(class(CLIENT + 1), STREAMS);
        assert_eq!(class(number("BLPOP")), BLOCKING);
        assert_eq!(class(OTHER), 0);
    }
}
