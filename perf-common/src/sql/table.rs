//! The automaton's tables: what each byte is, and what it means where it stands.

pub(super) mod mysql;

/// What a byte is to the lexer.
const SPACE: usize = 0;
const LETTER: usize = 1;
/// `e` or `E`: begins a string with escapes, or the exponent of a number.
const EXPONENT: usize = 2;
const DIGIT: usize = 3;
const QUOTE: usize = 4;
const DOUBLE: usize = 5;
const DOLLAR: usize = 6;
const MINUS: usize = 7;
const PLUS: usize = 8;
const SLASH: usize = 9;
const STAR: usize = 10;
const BACKSLASH: usize = 11;
const NEWLINE: usize = 12;
const OPEN: usize = 13;
const CLOSE: usize = 14;
const COMMA: usize = 15;
const DOT: usize = 16;
const OTHER: usize = 17;
const CLASSES: usize = 18;

/// The class of each byte.
pub(super) static CLASS: [u8; 256] = {
    let mut table = [OTHER as u8; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = match b as u8 {
            b'\n' | b'\r' => NEWLINE,
            // A NUL ends the statement, and with it its last word.
            0 | b' ' | b'\t' | 0x0b | 0x0c => SPACE,
            b'e' | b'E' => EXPONENT,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => LETTER,
            b'0'..=b'9' => DIGIT,
            b'\'' => QUOTE,
            b'"' => DOUBLE,
            b'$' => DOLLAR,
            b'-' => MINUS,
            b'+' => PLUS,
            b'/' => SLASH,
            b'*' => STAR,
            b'\\' => BACKSLASH,
            b'(' => OPEN,
            b')' => CLOSE,
            b',' => COMMA,
            b'.' => DOT,
            _ => OTHER,
        } as u8;
        b += 1;
    }
    table
};

/// Where in the text the lexer stands.
pub(super) const BETWEEN: u8 = 0;
const WORD: u8 = 1;
/// A word that so far is `e`.
const WORD_E: u8 = 2;
const NUMBER: u8 = 3;
const NUMBER_E: u8 = 4;
const STRING: u8 = 5;
/// A quote inside a string: its end, unless another one follows.
const STRING_QUOTE: u8 = 6;
const ESCAPED: u8 = 7;
const ESCAPED_BACKSLASH: u8 = 8;
const ESCAPED_QUOTE: u8 = 9;
const IDENTIFIER: u8 = 10;
const IDENTIFIER_QUOTE: u8 = 11;
const AFTER_MINUS: u8 = 12;
const LINE_COMMENT: u8 = 13;
const AFTER_SLASH: u8 = 14;
const COMMENT: u8 = 15;
const COMMENT_STAR: u8 = 16;
const COMMENT_SLASH: u8 = 17;
/// A dollar that begins a parameter or a dollar quote.
const AFTER_DOLLAR: u8 = 18;
const PARAMETER: u8 = 19;
const TAG: u8 = 20;
const BODY: u8 = 21;
/// A dollar inside a dollar quote, and what may be its closing tag.
const BODY_TAG: u8 = 22;
/// A point that no word stands before.
const AFTER_DOT: u8 = 23;
/// The text is as long as it may be, or where its literals end is not known: nothing changes any more.
pub(super) const FULL: u8 = 24;
/// A backslash in a string. It escapes if `standard_conforming_strings` is off, which nobody knows here.
const STRING_BACKSLASH: u8 = 25;
const LAST_MODE: u8 = STRING_BACKSLASH;

/// Bits of a transition; the lowest five are the next mode.
pub(super) const MODE: u32 = 31;
/// The byte is written as it stands in its token.
pub(super) const COPY: u32 = 1 << 5;
/// And in lower case.
pub(super) const FOLD: u32 = 1 << 6;
/// A token begins: its kind is at [`KIND`].
pub(super) const TOKEN: u32 = 1 << 7;
/// What was written of the last token goes away again.
pub(super) const REWIND: u32 = 1 << 8;
/// The same if what stands before it makes a minus a sign.
pub(super) const REWIND_SIGN: u32 = 1 << 9;
/// White space stands here.
pub(super) const BLANK: u32 = 1 << 10;
/// A word ends before this byte.
pub(super) const WORD_END: u32 = 1 << 11;
/// Not a number's point if a word stands before it.
pub(super) const MEMBER: u32 = 1 << 12;
/// The token is a literal.
pub(super) const MASK: u32 = 1 << 13;
/// One of the `DO_` actions is at [`ACTION`].
pub(super) const ACT: u32 = 1 << 14;
/// Neither nothing nor a plain copy.
pub(super) const SLOW: u32 = TOKEN | REWIND | REWIND_SIGN | BLANK | WORD_END | ACT;
pub(super) const KIND: u32 = 16;
pub(super) const ACTION: u32 = 20;

/// Kinds of tokens.
pub(super) const KIND_WORD: u32 = 0;
pub(super) const KIND_LITERAL: u32 = 1;
pub(super) const KIND_OPERATOR: u32 = 2;
pub(super) const KIND_OPEN: u32 = 3;
pub(super) const KIND_CLOSE: u32 = 4;
pub(super) const KIND_COMMA: u32 = 5;

pub(super) const DO_TAG_BEGIN: u32 = 0;
pub(super) const DO_TAG_ADD: u32 = 1;
pub(super) const DO_TAG_KEEP: u32 = 2;
pub(super) const DO_TAG_COMPARE: u32 = 3;
pub(super) const DO_COMMENT_BEGIN: u32 = 4;
pub(super) const DO_COMMENT_DEEPER: u32 = 5;
pub(super) const DO_COMMENT_END: u32 = 6;
pub(super) const DO_TAG_EMPTY: u32 = 7;
pub(super) const DO_TAG_FIRST: u32 = 8;

const fn to(mode: u8) -> u32 {
    mode as u32
}

const fn act(mode: u8, action: u32) -> u32 {
    to(mode) | ACT | action << ACTION
}

const fn token(mode: u8, kind: u32) -> u32 {
    to(mode) | TOKEN | kind << KIND
}

const fn literal(mode: u8) -> u32 {
    token(mode, KIND_LITERAL) | MASK
}

/// What a byte means between tokens.
const fn between(class: usize) -> u32 {
    match class {
        SPACE | NEWLINE => to(BETWEEN) | BLANK,
        LETTER => token(WORD, KIND_WORD) | FOLD,
        EXPONENT => token(WORD_E, KIND_WORD) | FOLD,
        DIGIT => literal(NUMBER),
        QUOTE => literal(STRING),
        DOUBLE => token(IDENTIFIER, KIND_WORD),
        DOLLAR => literal(AFTER_DOLLAR),
        MINUS => token(AFTER_MINUS, KIND_OPERATOR),
        SLASH => token(AFTER_SLASH, KIND_OPERATOR),
        OPEN => token(BETWEEN, KIND_OPEN),
        CLOSE => token(BETWEEN, KIND_CLOSE),
        COMMA => token(BETWEEN, KIND_COMMA),
        DOT => token(AFTER_DOT, KIND_OPERATOR) | MEMBER,
        _ => token(BETWEEN, KIND_OPERATOR),
    }
}

const fn transition(mode: u8, class: usize) -> u32 {
    let word = matches!(class, LETTER | EXPONENT | DIGIT);
    match mode {
        WORD | WORD_E => match class {
            LETTER | EXPONENT | DIGIT | DOLLAR => to(WORD) | COPY | FOLD,
            QUOTE if mode == WORD_E => literal(ESCAPED) | REWIND,
            _ => between(class) | WORD_END,
        },
        NUMBER => match class {
            EXPONENT => to(NUMBER_E),
            LETTER | DIGIT | DOT => to(NUMBER),
            _ => between(class),
        },
        NUMBER_E => match class {
            EXPONENT => to(NUMBER_E),
            LETTER | DIGIT | DOT | MINUS | PLUS => to(NUMBER),
            _ => between(class),
        },
        STRING => to(match class {
            QUOTE => STRING_QUOTE,
            BACKSLASH => STRING_BACKSLASH,
            _ => STRING,
        }),
        STRING_BACKSLASH => to(if class == QUOTE { FULL } else { STRING }),
        STRING_QUOTE if class == QUOTE => to(STRING),
        ESCAPED => to(match class {
            QUOTE => ESCAPED_QUOTE,
            BACKSLASH => ESCAPED_BACKSLASH,
            _ => ESCAPED,
        }),
        ESCAPED_BACKSLASH => to(ESCAPED),
        ESCAPED_QUOTE if class == QUOTE => to(ESCAPED),
        IDENTIFIER => to(if class == DOUBLE { IDENTIFIER_QUOTE } else { IDENTIFIER }) | COPY,
        IDENTIFIER_QUOTE if class == DOUBLE => to(IDENTIFIER) | COPY,
        AFTER_MINUS => match class {
            MINUS => to(LINE_COMMENT) | REWIND | BLANK,
            DIGIT => literal(NUMBER) | REWIND_SIGN,
            _ => between(class),
        },
        LINE_COMMENT => to(if class == NEWLINE { BETWEEN } else { LINE_COMMENT }),
        AFTER_SLASH if class == STAR => act(COMMENT, DO_COMMENT_BEGIN) | REWIND | BLANK,
        COMMENT | COMMENT_STAR | COMMENT_SLASH => match class {
            SLASH if mode == COMMENT_STAR => act(COMMENT, DO_COMMENT_END),
            STAR if mode == COMMENT_SLASH => act(COMMENT, DO_COMMENT_DEEPER),
            STAR => to(COMMENT_STAR),
            SLASH => to(COMMENT_SLASH),
            _ => to(COMMENT),
        },
        AFTER_DOLLAR => match class {
            DIGIT => to(PARAMETER),
            LETTER | EXPONENT => act(TAG, DO_TAG_FIRST),
            DOLLAR => act(BODY, DO_TAG_EMPTY),
            _ => between(class),
        },
        PARAMETER if class == DIGIT => to(PARAMETER),
        TAG if word => act(TAG, DO_TAG_ADD),
        TAG if class == DOLLAR => act(BODY, DO_TAG_KEEP),
        BODY if class == DOLLAR => act(BODY_TAG, DO_TAG_BEGIN),
        BODY_TAG if word => act(BODY_TAG, DO_TAG_ADD),
        BODY_TAG if class == DOLLAR => act(BODY_TAG, DO_TAG_COMPARE),
        BODY | BODY_TAG => to(BODY),
        AFTER_DOT if class == DIGIT => literal(NUMBER) | REWIND,
        FULL => to(FULL),
        _ => between(class),
    }
}

/// The transition of each mode (times 32) and class.
pub(super) static TABLE: [u32; 1024] = {
    let mut table = [to(FULL); 1024];
    let mut mode = 0;
    while mode <= LAST_MODE {
        let mut class = 0;
        while class < CLASSES {
            table[mode as usize * 32 + class] = transition(mode, class);
            class += 1;
        }
        mode += 1;
    }
    table
};

/// How far a list is: what stands at the end of the text, where it matters for lists of literals.
const PLAIN: u8 = 0;
/// `(`
const AT_OPEN: u8 = 1;
/// `?`
const AT_LITERAL: u8 = 2;
/// `(?`
const IN_ROW: u8 = 3;
/// `(?)`
const ROW: u8 = 4;
/// `?,`
const LITERAL_COMMA: u8 = 5;
/// `(?,`
const IN_ROW_COMMA: u8 = 6;
/// `(?),`
const ROW_COMMA: u8 = 7;
/// `(?),(`
const ROWS_OPEN: u8 = 8;
/// `(?),(?`
const ROWS_IN_ROW: u8 = 9;
/// `(?),(?,`
const ROWS_IN_ROW_COMMA: u8 = 10;

/// In an entry of [`LIST`]: the next state of the list.
pub(super) const LIST_STATE: u8 = 15;
/// How many bytes at the text's end go away, times 16.
pub(super) const LIST_BACK: u32 = 4;
/// The token is not written.
pub(super) const LIST_DROP: u8 = 1 << 7;

const fn list(state: u8, kind: u32) -> u8 {
    const fn drop(state: u8, back: u8) -> u8 {
        state | back << LIST_BACK | LIST_DROP
    }
    match (kind, state) {
        (KIND_LITERAL, AT_OPEN) => IN_ROW,
        (KIND_LITERAL, LITERAL_COMMA) => drop(AT_LITERAL, 1),
        (KIND_LITERAL, IN_ROW_COMMA) => drop(IN_ROW, 1),
        (KIND_LITERAL, ROWS_OPEN) => ROWS_IN_ROW,
        (KIND_LITERAL, ROWS_IN_ROW_COMMA) => drop(ROWS_IN_ROW, 1),
        (KIND_LITERAL, _) => AT_LITERAL,
        (KIND_CLOSE, IN_ROW) => ROW,
        (KIND_CLOSE, ROWS_IN_ROW) => drop(ROW, 3),
        (KIND_COMMA, AT_LITERAL) => LITERAL_COMMA,
        (KIND_COMMA, IN_ROW) => IN_ROW_COMMA,
        (KIND_COMMA, ROW) => ROW_COMMA,
        (KIND_COMMA, ROWS_IN_ROW) => ROWS_IN_ROW_COMMA,
        (KIND_OPEN, ROW_COMMA) => ROWS_OPEN,
        (KIND_OPEN, _) => AT_OPEN,
        _ => PLAIN,
    }
}

/// What a token of each kind does to a list in each state (times 8).
pub(super) static LIST: [u8; 128] = {
    let mut table = [PLAIN; 128];
    let mut state = 0;
    while state <= ROWS_IN_ROW_COMMA {
        let mut kind = 0;
        while kind <= KIND_COMMA {
            table[state as usize * 8 + kind as usize] = list(state, kind);
            kind += 1;
        }
        state += 1;
    }
    table
};

/// What the last token was, as far as the next one asks.
pub(super) const LAST_START: u32 = 0;
/// A word or a literal.
pub(super) const LAST_WORD: u32 = 1;
pub(super) const LAST_OPERATOR: u32 = 2;
/// An opening bracket or a comma.
pub(super) const LAST_OPEN: u32 = 3;
const LAST_CLOSE: u32 = 4;

/// By kind.
pub(super) static LAST: [u8; 8] = [
    LAST_WORD as u8,
    LAST_WORD as u8,
    LAST_OPERATOR as u8,
    LAST_OPEN as u8,
    LAST_CLOSE as u8,
    LAST_OPEN as u8,
    0,
    0,
];
