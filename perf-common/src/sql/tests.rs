use super::*;
use proptest::prelude::*;

fn text(statement: &str) -> String {
    String::from_utf8(read(statement.as_bytes()).text().to_vec()).unwrap()
}

fn fingerprint(statement: &str) -> u64 {
    read(statement.as_bytes()).fingerprint()
}

#[test]
fn literals_layout_and_case_do_not_count() {
    for (statement, normal) in [
        ("SELECT 1", "select ?"),
        ("", ""),
        ("  \n\t ", ""),
        ("select\n\t*  FROM  T ;", "select*from t;"),
        (
            "SELECT a.b, c FROM s.t WHERE x = 'it''s' AND y<>3.5e-7",
            "select a.b,c from s.t where x=? and y<>?",
        ),
        ("select E'a\\'b\\\\', e'x', 'y'", "select ?"),
        ("select the'x'", "select the?"),
        ("select $$it's; -- $$, $a$ $$ $b$ $a $a$ x", "select ? x"),
        ("select $1, $23::int", "select ?::int"),
        ("select a$1, \"a\"\"'1\"", "select a$1,\"a\"\"'1\""),
        ("select 0x1F, 1_000, .5, 5., 1e+10, 1.5E5", "select ?"),
        ("select a-1, a - -1, -1, (-1), a=-1, -a", "select a-?,a-?,(?),a=?,-a"),
        ("select 1 -- it's\n , 2 /* 'x /* 3 */ ' */ from/**/t", "select ? from t"),
        ("select a -- rest", "select a"),
        ("select a - b / c * d", "select a-b/c*d"),
        ("select x @ -1, x @ - y", "select x@?,x@ -y"),
        ("IN (1)", "in(?)"),
        ("IN (1, 2,3 , 'x')", "in(?)"),
        ("IN (1, a, 2, 3)", "in(?,a,?)"),
        ("values (1)", "values(?)"),
        ("values (1, 'a'), (2, null) , (DEFAULT, true)", "values(?)"),
        ("values (1, 'a'), (2, now()), (3, x)", "values(?),(?,now()),(?,x)"),
        ("values (1, 'a'), (2, 'b') returning id", "values(?)returning id"),
        ("x is null and y IS NOT NULL or nullable", "x is ? and y is not ? or nullable"),
        ("select null", "select ?"),
        ("select array[1,2,3], b'01', X'ff', U&'x' UESCAPE '!'", "select array[?],b?,x?,u&? uescape ?"),
        ("select 'a' 'b'", "select ? ?"),
        ("select j->'a'->>'b', j #- '{a}', j ? 'k'", "select j->?->>?,j#-?,j??"),
        ("select größe from t", "select größe from t"),
        ("/*traceparent='00-ab'*/ select 1", "select ?"),
        ("select 1; select 'x'", "select ?;select ?"),
    ] {
        assert_eq!(text(statement), normal, "{statement}");
    }
}

#[test]
fn what_differs_in_layout_is_one_statement() {
    let one = fingerprint("UPDATE t SET a = 1, b = 'x' WHERE id IN (1, 2, 3)");
    for other in [
        "update t set a=77,b=null where id in (9)",
        "UPDATE /* c */ t\n SET a = $1, b = $2 WHERE id IN ($3,$4);",
        "  update T set A=-1.5 , b = E'\\'' where ID in ( 'a' )  ; ",
    ] {
        assert_eq!(fingerprint(other), one, "{other}");
    }
    for other in [
        "update t set a=1,c='x' where id in (1)",
        "update t set a=1,b='x' where id in (1,x)",
        "update u set a=1",
    ] {
        assert_ne!(fingerprint(other), one, "{other}");
    }
    assert_ne!(fingerprint("select \"A\" from t"), fingerprint("select \"a\" from t"));
    assert_ne!(fingerprint("select ab"), fingerprint("select a b"));
}

#[test]
fn a_long_statement_is_told_by_what_stands_before_its_first_literal() {
    let row = |n: usize| format!("({n}, now(), '{}')", "x".repeat(n % 13));
    let many = |rows: usize| (0..rows).map(row).collect::<Vec<_>>().join(",");
    let long = |rows| fingerprint(&format!("insert into t (a, b, c) values {}", many(rows)));
    assert_eq!(long(600), long(2000));
    let literal = |n| fingerprint(&format!("insert into t values ('{}') returning id", "x".repeat(n)));
    assert_eq!(literal(1), literal(2000));
    assert_eq!(literal(5000), literal(500_000));
    assert_ne!(literal(5000), OTHER);
    // Columns without a literal count up to the text's end.
    let columns = |n| (0..n).map(|n| format!("a_long_column_{n}")).collect::<Vec<_>>().join(", ");
    let selected = |n, table| fingerprint(&format!("select {} from {table} where id = $1", columns(n)));
    assert_ne!(selected(20, "t"), selected(20, "u"));
    assert_eq!(selected(200, "t"), selected(200, "u"));
    assert_eq!(selected(1000, "t"), selected(200, "u"));
}

/// A piece of a statement, and what of it may be in its text: literals are marked by letters that nothing else has.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ \n\t]{1,3}",
        "[a-d_]{1,9}",
        "(select|from|where|null|default|values|in|true)",
        "[-+*/<>=~!@#%^&|.,;:?()\\[\\]{}]{1,2}",
        // Literals: only these hold the letters z and q, and the digit 7.
        "'([zq7 \"\\\\$-]|''){0,9}'",
        "[eE]'([zq7\" -]|''|\\\\'|\\\\\\\\){0,9}'",
        "\\$\\$[zq7 '\"-]{0,9}\\$\\$",
        "\\$a\\$([zq7 '\"-]|\\$\\$|\\$b\\$|\\$z){0,9}\\$a\\$",
        "7{1,3}(\\.7{1,3})?(e[-+]?7)?",
        "0x7+",
        "\\$7+",
        "--[zq7a' \"$]{0,9}\n",
        "/\\*[zq7' \"$a]{0,5}(/\\*[zq7' ]{0,5}\\*/)?[zq7' ]{0,4}\\*/",
        "\"([a-d '$;]|\"\"|--){1,5}\"",
    ]
}

#[test]
fn a_backslash_before_a_quote_ends_what_is_told_of_a_statement() {
    for (statement, normal) in [
        (r"select 'it\'s secret' from t", "select ?"),
        (r"select 'C:\', 'secret' from t", "select ?"),
        (r"insert into t values (1, '\\\', secret", "insert into t values(?"),
        (r"select 'a\b', '\\' from t", "select ? from t"),
    ] {
        assert_eq!(text(statement), normal, "{statement}");
    }
}

/// Pieces with white space between them, because a quote that follows a quote belongs to the same literal.
fn statement() -> impl Strategy<Value = String> {
    prop::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #[test]
    fn no_byte_of_a_literal_is_in_the_text(statement in statement()) {
        let text = text(&statement);
        prop_assert!(!text.contains(['z', 'q', '7']), "{}\n{}", statement, text);
    }

    #[test]
    fn nor_is_one_where_standard_conforming_strings_are_off(
        strings in prop::collection::vec("'([zq7 \"-]|''|\\\\'|\\\\\\\\|\\\\z){0,9}'", 1..9),
        between in "( , | || | = )",
    ) {
        let statement = "select ".to_owned() + &strings.join(&between);
        let text = text(&statement);
        prop_assert!(!text.contains(['z', 'q', '7']), "{}\n{}", statement, text);
    }

    #[test]
    fn normal_text_stays_as_it_is(statement in statement()) {
        let once = text(&statement);
        // A parameter in the place of each mask; an operator `?` becomes one as well, and a mask after one an operator.
        prop_assume!(!statement.contains('?'));
        prop_assert_eq!(text(&once.replace('?', "$1")), once);
    }

    #[test]
    fn other_literals_are_the_same_statement(statement in statement()) {
        let other = statement.replace('z', "zqq").replace('7', "77");
        // A tag that changes its length is another one to the dollar quote, and so is `$z` in it.
        prop_assert_eq!(text(&statement), text(&other));
        prop_assert_eq!(fingerprint(&statement), fingerprint(&other));
    }

    #[test]
    fn any_bytes_do(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let statement = read(&bytes);
        prop_assert!(statement.text().len() <= TEXT);
        prop_assert_ne!(statement.fingerprint(), OTHER);
    }

    #[test]
    fn same_text_is_same_fingerprint(a in statement(), b in statement()) {
        let same = text(&a).trim_end_matches(';') == text(&b).trim_end_matches(';');
        prop_assume!(!text(&a).contains(";;") && !text(&a).contains("; ;"));
        prop_assume!(!text(&b).contains(";;") && !text(&b).contains("; ;"));
        prop_assert_eq!(same, fingerprint(&a) == fingerprint(&b));
    }
}

fn mysql(statement: &str) -> String {
    String::from_utf8(read_mysql(statement.as_bytes()).text().to_vec()).unwrap()
}

#[test]
fn mysql_quotes_and_comments_in_its_own_way() {
    for (statement, normal) in [
        ("SELECT `a``b`.`c'\"#?` FROM t", "select `a``b`.`c'\"#?` from t"),
        ("select 'it\\'s', \"it\\\"s\", 'a''b', \"a\"\"b\" from t", "select ? from t"),
        ("select 'a\\\\', secret", "select ?,secret"),
        ("select \"a\\\\\", x", "select ?,x"),
        ("select a # it's -- \n from t", "select a from t"),
        ("select a -- it's \n from t", "select a from t"),
        ("select a --\n from t", "select a from t"),
        ("select 5--3, a--b", "select ?-?,a-b"),
        ("select a /* x /* it's */ from t", "select a from t"),
        ("where a in (?, ?, ?) and b = ? limit ?", "where a in(?)and b=? limit ?"),
        ("insert into t values (?,?),(?,?)", "insert into t values(?)"),
        ("insert into t values (1,'x',NULL),(2,\"y\",default)", "insert into t values(?)"),
        ("select x'ff', N'x', _utf8'x', 0x1f, 1e-5, .5, -1, a-1", "select x?,n?,_utf8?,a-?"),
        ("select $a, @b, @@c.d, e'x'", "select $a,@b,@@c.d,e?"),
        ("select 1'x'", "select ??"),
        ("select null", "select ?"),
        ("call p('", "call p(?"),
    ] {
        assert_eq!(mysql(statement), normal, "{statement}");
    }
}

/// As [`piece`], in MySQL's words.
fn mysql_piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ \n\t]{1,3}",
        "[a-d_$]{1,9}",
        "(select|from|where|null|default|values|in|true)",
        // Comments do not nest: one that two operators begin would end inside the next piece.
        "[-+*/<>=~!@%^&|.,;:?()]{1,2}".prop_filter("a comment", |operators| operators != "/*"),
        "'([zq7 \"#$`-]|''|\\\\'|\\\\\\\\|\\\\z){0,9}'",
        "\"([zq7 '#$`-]|\"\"|\\\\\"|\\\\\\\\|\\\\z){0,9}\"",
        "7{1,3}(\\.7{1,3})?(e[-+]?7)?",
        "0x7+",
        "-- [zq7a' \"$`]{0,9}\n",
        "#[zq7a' \"$`]{0,9}\n",
        "/\\*[zq7' $a\"#`/]{0,9}\\*/",
        "`([a-d '$;#?\"]|``|--){1,5}`",
    ]
}

proptest! {
    #[test]
    fn no_byte_of_a_mysql_literal_is_in_the_text(pieces in prop::collection::vec(mysql_piece(), 0..40)) {
        let statement = pieces.join(" ");
        let text = mysql(&statement);
        prop_assert!(!text.contains(['z', 'q', '7']), "{}\n{}", statement, text);
    }

    #[test]
    fn any_bytes_do_for_mysql(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let statement = read_mysql(&bytes);
        prop_assert!(statement.text().len() <= TEXT);
        prop_assert_ne!(statement.fingerprint(), OTHER);
    }
}
