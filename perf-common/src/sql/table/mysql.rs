//! The tables for MySQL and MariaDB: backslashes escape, double quotes are strings, backticks quote identifiers, `#` begins a
//! comment, and a `?` stands for a value.

use super::{
    AFTER_DOT, AFTER_MINUS, AFTER_SLASH, BACKSLASH, BETWEEN, BLANK, CLASS, CLASSES, COMMENT, COMMENT_SLASH,
    COMMENT_STAR, DIGIT, DO_COMMENT_END, DOUBLE, ESCAPED, ESCAPED_BACKSLASH, ESCAPED_QUOTE, FULL, LETTER,
    LINE_COMMENT, MINUS, NEWLINE, QUOTE, REWIND, SLASH, SPACE, STAR, WORD, WORD_E, WORD_END, act, between,
    literal, to, transition,
};

/// Classes beside the ones of PostgreSQL: `"`, `#` and `?`.
const STRING_DOUBLE: usize = CLASSES;
const HASH: usize = CLASSES + 1;
const MARK: usize = CLASSES + 2;

/// Modes beside those of PostgreSQL: in a string in double quotes, behind a backslash and behind a quote in it, and behind two
/// minus signs, which begin a comment where white space follows.
const DOUBLE_ESCAPED: u8 = 25;
const DOUBLE_BACKSLASH: u8 = 26;
const DOUBLE_QUOTE: u8 = 27;
const DASHES: u8 = 28;

pub(in crate::sql) static CLASS_MYSQL: [u8; 256] = {
    let mut table = CLASS;
    table[b'`' as usize] = DOUBLE as u8;
    table[b'"' as usize] = STRING_DOUBLE as u8;
    table[b'#' as usize] = HASH as u8;
    table[b'?' as usize] = MARK as u8;
    table[b'$' as usize] = LETTER as u8;
    table
};

const fn between_mysql(class: usize) -> u32 {
    match class {
        QUOTE => literal(ESCAPED),
        STRING_DOUBLE => literal(DOUBLE_ESCAPED),
        HASH => to(LINE_COMMENT) | BLANK,
        MARK => literal(BETWEEN),
        _ => between(class),
    }
}

const fn transition_mysql(mode: u8, class: usize) -> u32 {
    match mode {
        WORD | WORD_E if matches!(class, QUOTE | STRING_DOUBLE | HASH | MARK) => {
            between_mysql(class) | WORD_END
        }
        DOUBLE_ESCAPED => to(match class {
            STRING_DOUBLE => DOUBLE_QUOTE,
            BACKSLASH => DOUBLE_BACKSLASH,
            _ => DOUBLE_ESCAPED,
        }),
        DOUBLE_BACKSLASH => to(DOUBLE_ESCAPED),
        DOUBLE_QUOTE if class == STRING_DOUBLE => to(DOUBLE_ESCAPED),
        AFTER_MINUS if class == MINUS => to(DASHES),
        DASHES => match class {
            SPACE => to(LINE_COMMENT) | REWIND | BLANK,
            NEWLINE => to(BETWEEN) | REWIND | BLANK,
            _ => between_mysql(class),
        },
        // Comments do not nest.
        COMMENT | COMMENT_STAR | COMMENT_SLASH => match class {
            SLASH if mode == COMMENT_STAR => act(COMMENT, DO_COMMENT_END),
            STAR => to(COMMENT_STAR),
            _ => to(COMMENT),
        },
        // What is left of these is as in PostgreSQL, but for what a byte of another class begins.
        ESCAPED | ESCAPED_BACKSLASH | LINE_COMMENT | FULL => {
            transition(mode, if class < CLASSES { class } else { SPACE })
        }
        ESCAPED_QUOTE if class == QUOTE => to(ESCAPED),
        AFTER_MINUS | AFTER_SLASH | AFTER_DOT if matches!(class, DIGIT | STAR) => transition(mode, class),
        BETWEEN | DOUBLE_QUOTE | AFTER_MINUS | AFTER_SLASH | AFTER_DOT | ESCAPED_QUOTE => {
            between_mysql(class)
        }
        _ if class == QUOTE || class >= CLASSES => inside_or_between(mode, class),
        _ => transition(mode, class),
    }
}

/// In an identifier every byte is its own; behind anything else something begins.
const fn inside_or_between(mode: u8, class: usize) -> u32 {
    if mode == super::IDENTIFIER { transition(mode, super::OTHER) } else { between_mysql(class) }
}

/// The transition of each mode (times 32) and class.
pub(in crate::sql) static TABLE_MYSQL: [u32; 1024] = {
    let mut table = [to(FULL); 1024];
    let mut mode = 0;
    while mode <= DASHES {
        let mut class = 0;
        while class <= MARK {
            table[mode as usize * 32 + class] = transition_mysql(mode, class);
            class += 1;
        }
        mode += 1;
    }
    table
};
