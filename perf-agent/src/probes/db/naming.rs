//! From a normalised statement to what a series is called: the kind of statement and the table it is about.

use std::ops::ControlFlow;
use std::thread;

use sqlparser::ast::{
    CopySource, FromTable, ObjectName, Query, SetExpr, Statement, TableFactor, TableObject, TableWithJoins,
    Visit, Visitor,
};
use sqlparser::dialect::Dialect;
use sqlparser::parser::Parser;

use super::Name;

/// How a system's statements are read.
pub(in crate::probes) struct Language {
    pub(in crate::probes) dialect: &'static (dyn Dialect + Sync),
    /// What stands around an identifier that is no word.
    pub(in crate::probes) quote: char,
    /// The commands that it knows. Whatever else a statement begins with is `other`: it is the client's text.
    pub(in crate::probes) commands: &'static [&'static str],
}

impl Name {
    pub(super) fn other() -> Self {
        Self { query_type: OTHER.to_owned(), table: OTHER.to_owned(), is_blocking: false }
    }

    /// Of a statement as `perf_common::sql` writes it; `cut` if it is longer than that.
    pub(super) fn of(text: &str, cut: bool, language: &'static Language) -> Self {
        if !cut && !is_deep(text) {
            let copy = text.to_owned();
            // The parser is recursive, and so is what it builds: a kilobyte of hostile text must not reach the end of the stack.
            let parser = thread::Builder::new().name("sqlparser".to_owned()).stack_size(STACK);
            let parsed = parser
                .spawn(move || Self::parsed(&copy, language))
                .ok()
                .and_then(|parser| parser.join().ok());
            if let Some(name) = parsed.flatten() {
                return name;
            }
        }
        let table = by_words(text, language.quote).unwrap_or_default();
        let query_type = first_keyword(text, language).unwrap_or(OTHER).to_owned();
        Self { query_type, table, is_blocking: false }
    }

    fn parsed(text: &str, language: &Language) -> Option<Self> {
        let statement = parse(text, language.dialect)?;
        let (verb, table) = target(&statement);
        let query_type = verb.or_else(|| first_keyword(text, language)).unwrap_or(OTHER).to_owned();
        let table = table.or_else(|| Tables::first_of(&statement)).or_else(|| {
            // What is about no table is not about whatever stands behind a FROM.
            if verb.is_some() { None } else { by_words(text, language.quote) }
        });
        Some(Self { query_type, table: table.unwrap_or_default(), is_blocking: false })
    }
}

const OTHER: &str = "other";
/// Of the thread that parses: address space, of which a usual statement touches a thousandth.
const STACK: usize = 64 << 20;
/// Brackets in brackets that a statement may have to be parsed.
const DEEPEST: usize = 24;
/// Longer than any identifier with its schema, quoted ones with four bytes a letter aside.
const MAX_TABLE: usize = 128;

fn is_deep(text: &str) -> bool {
    let mut depth = 0_usize;
    text.bytes().any(|byte| {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > DEEPEST
    })
}

fn first_keyword(text: &str, language: &Language) -> Option<&'static str> {
    let text = text.trim_start_matches('(');
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut known = language.commands.iter().copied();
    known.find(|command| command.eq_ignore_ascii_case(&text[..end]))
}

/// The first of the text's statements.
fn parse(text: &str, dialect: &dyn Dialect) -> Option<Statement> {
    // No parser takes the masks. A null can stand for most literals, a string for the rest.
    ["null", "'x'"].into_iter().find_map(|value| {
        let text = text.replace('?', value);
        let statements = Parser::parse_sql(dialect, &text).ok()?;
        statements.into_iter().next()
    })
}

/// The verb where it is not the first word, and the table that a statement changes.
fn target(statement: &Statement) -> (Option<&'static str>, Option<String>) {
    match statement {
        Statement::Insert(insert) => {
            let verb = Some(if insert.replace_into { "REPLACE" } else { "INSERT" });
            let TableObject::TableName(table) = &insert.table else { return (verb, None) };
            (verb, Some(plain(table)))
        }
        Statement::Update(update) => (Some("UPDATE"), factor(&update.table.relation)),
        Statement::Delete(delete) => {
            let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
            (Some("DELETE"), from.first().and_then(|TableWithJoins { relation, .. }| factor(relation)))
        }
        Statement::Merge(merge) => (Some("MERGE"), factor(&merge.table)),
        Statement::Copy { source: CopySource::Table { table_name, .. }, .. } => {
            (Some("COPY"), Some(plain(table_name)))
        }
        Statement::Query(query) => match body(query) {
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement)
            | SetExpr::Merge(statement) => target(statement),
            SetExpr::Values(_) => (Some("VALUES"), None),
            _ => (Some("SELECT"), None),
        },
        _ => (None, None),
    }
}

/// Without the brackets around it.
fn body(query: &Query) -> &SetExpr {
    let mut body = &*query.body;
    while let SetExpr::Query(inner) = body {
        body = &inner.body;
    }
    body
}

fn factor(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { name, args: None, .. } => Some(plain(name)),
        _ => None,
    }
}

/// `schema.table`, without quotes.
fn plain(name: &ObjectName) -> String {
    let parts = name.0.iter().filter_map(|part| part.as_ident()).map(|ident| ident.value.as_str());
    bounded(&parts.collect::<Vec<_>>().join("."))
}

fn bounded(name: &str) -> String {
    name.chars().take(MAX_TABLE).collect()
}

/// Looks for the first table that is not one of the statement's own (`WITH`).
#[derive(Default)]
struct Tables {
    own: Vec<String>,
}

impl Tables {
    fn first_of(statement: &Statement) -> Option<String> {
        match statement.visit(&mut Self::default()) {
            ControlFlow::Break(table) => Some(table),
            ControlFlow::Continue(()) => None,
        }
    }
}

impl Visitor for Tables {
    type Break = String;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        let tables = query.with.iter().flat_map(|with| &with.cte_tables);
        self.own.extend(tables.map(|table| table.alias.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<String> {
        match factor(table) {
            Some(name) if !self.own.contains(&name) => ControlFlow::Break(name),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// For what the parser does not take, or what is cut: the identifier behind the first word that a table follows.
fn by_words(text: &str, quote: char) -> Option<String> {
    const BEFORE: [&str; 11] =
        ["from", "into", "update", "join", "table", "copy", "truncate", "vacuum", "analyze", "lock", "merge"];
    const BETWEEN: [&str; 9] =
        ["only", "lateral", "if", "not", "exists", "into", "table", "tables", "concurrently"];
    let mut words = Words { text, quote }.peekable();
    while let Some(word) = words.next() {
        if !BEFORE.contains(&word) {
            continue;
        }
        while words.next_if(|word| BETWEEN.contains(word)).is_some() {}
        if let Some(name) =
            words.next_if(|word| word.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == quote))
            && name != "select"
        {
            return Some(bounded(&name.replace(quote, "")));
        }
    }
    None
}

/// Words with their points and quotes; everything else one by one.
struct Words<'a> {
    text: &'a str,
    quote: char,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let Self { text, quote } = *self;
        let text = text.trim_start();
        let mut quoted = false;
        let mut last = '.';
        let mut inside = |c: char| {
            // A quoted name runs into the word before it, where the space between them is gone.
            let begins = c == quote && !quoted && last != '.' && last != quote;
            quoted ^= c == quote && !begins;
            last = c;
            !begins && (quoted || c == quote || c.is_alphanumeric() || "_$.".contains(c))
        };
        let end = text.find(|c| !inside(c)).unwrap_or(text.len());
        let end = if end == 0 { text.chars().next()?.len_utf8() } else { end };
        let (word, rest) = text.split_at(end);
        self.text = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::{mysql, postgres};

    fn name(statement: &str) -> (String, String) {
        let read = perf_common::sql::read(statement.as_bytes());
        named(&String::from_utf8_lossy(read.text()), &postgres::LANGUAGE)
    }

    fn name_mysql(statement: &str) -> (String, String) {
        let read = perf_common::sql::read_mysql(statement.as_bytes());
        named(&String::from_utf8_lossy(read.text()), &mysql::LANGUAGE)
    }

    fn named(text: &str, language: &'static Language) -> (String, String) {
        let Name { query_type, table, .. } = Name::of(text, false, language);
        (query_type, table)
    }

    /// Each statement with what it should be called; those that are not.
    fn wrong(name: fn(&str) -> (String, String), statements: &[(&str, &str, &str)]) -> Vec<String> {
        let mut wrong = Vec::new();
        for &(statement, query_type, table) in statements {
            let (is, should) = (name(statement), (query_type.to_owned(), table.to_owned()));
            if is != should {
                wrong.push(format!("{statement}: {is:?}, not {should:?}"));
            }
        }
        wrong
    }

    #[test]
    fn statements_are_called_by_what_they_do_and_where() {
        let statements = [
            ("SELECT abalance FROM pgbench_accounts WHERE aid = 17", "SELECT", "pgbench_accounts"),
            (
                "UPDATE pgbench_accounts SET abalance = abalance + -5 WHERE aid = 1",
                "UPDATE",
                "pgbench_accounts",
            ),
            ("INSERT INTO h (tid, mtime) VALUES (1, CURRENT_TIMESTAMP)", "INSERT", "h"),
            (
                "INSERT INTO s.\"T x\" (a) VALUES (1, 'a'), (2, NULL) ON CONFLICT DO NOTHING",
                "INSERT",
                "s.T x",
            ),
            ("DELETE FROM ONLY t WHERE a IS NOT NULL", "DELETE", "t"),
            ("BEGIN", "BEGIN", ""),
            ("END;", "END", ""),
            ("start transaction isolation level serializable", "START", ""),
            ("SELECT 1", "SELECT", ""),
            ("select * from a join b on a.x = b.x", "SELECT", "a"),
            ("select (select max(x) from inner_t) from outer_t", "SELECT", "inner_t"),
            ("with w as (select * from real) select * from w", "SELECT", "real"),
            ("with w as (select * from src) insert into dst select * from w", "INSERT", "dst"),
            ("with w as (delete from gone returning *) select * from w", "SELECT", "gone"),
            ("select * from generate_series(1, 10)", "SELECT", ""),
            ("(select 1 from t) union all (select 2 from u)", "SELECT", "t"),
            ("select * from t where d > date '2020-01-01' - interval '3 days' limit 5", "SELECT", "t"),
            ("select extract(epoch from now())", "SELECT", ""),
            ("COPY t FROM STDIN", "COPY", "t"),
            ("copy s.t (a, b) to stdout with (format binary)", "COPY", "s.t"),
            ("truncate table t", "TRUNCATE", "t"),
            ("vacuum t", "VACUUM", "t"),
            ("CREATE TABLE IF NOT EXISTS t (a int DEFAULT 5)", "CREATE", "t"),
            ("create index i on t (a)", "CREATE", ""),
            ("SET search_path = 'x'", "SET", ""),
            ("SHOW server_version", "SHOW", ""),
            ("select a from t where b ? 'key'", "SELECT", "t"),
            ("select broken from t where ((", "SELECT", "t"),
            ("selekt 'x' from t", "other", "t"),
            ("", "other", ""),
            ("; ; ;", "other", ""),
            ("merge into t using s on t.a = s.a when matched then delete", "MERGE", "t"),
            ("select 1; delete from t", "SELECT", ""),
        ];
        assert_eq!(wrong(name, &statements), [""; 0]);
    }

    #[test]
    fn statements_of_mysql_are_too() {
        let statements = [
            ("SELECT c FROM `my db`.`t 1` WHERE a = 'it\\'s' LIMIT 5", "SELECT", "my db.t 1"),
            ("select a from t where b=\"x\" limit 1, 2", "SELECT", "t"),
            ("replace into t values (1, 2)", "REPLACE", "t"),
            ("INSERT IGNORE INTO t SET a = 1 ON DUPLICATE KEY UPDATE a = 2", "INSERT", "t"),
            ("insert into t (a) values (1) on duplicate key update a = values(a)", "INSERT", "t"),
            ("insert t values (1)", "INSERT", "t"),
            ("update t, u set t.a = u.a where t.b = u.b", "UPDATE", "t"),
            ("delete from t where a = 1 limit 5", "DELETE", "t"),
            ("LOAD DATA LOCAL INFILE 'x' INTO TABLE t FIELDS TERMINATED BY ','", "LOAD", "t"),
            ("truncate table t", "TRUNCATE", "t"),
            (
                "create table if not exists `t` (a int auto_increment primary key) engine=InnoDB",
                "CREATE",
                "t",
            ),
            ("drop table if exists t", "DROP", "t"),
            ("alter table t add column b int", "ALTER", "t"),
            ("set names utf8mb4", "SET", ""),
            ("set autocommit=0", "SET", ""),
            ("show tables", "SHOW", ""),
            ("show create table t", "SHOW", "t"),
            ("start transaction", "START", ""),
            ("begin", "BEGIN", ""),
            ("commit", "COMMIT", ""),
            ("use shop", "USE", ""),
            ("call p(1)", "CALL", ""),
            ("prepare s from 'select 1'", "PREPARE", ""),
            ("execute s using @a", "EXECUTE", ""),
            ("lock tables t write", "LOCK", "t"),
            ("analyze table t", "ANALYZE", "t"),
            ("optimize table t", "OPTIMIZE", "t"),
            ("select sleep(1)", "SELECT", ""),
            ("select @@version_comment limit 1", "SELECT", ""),
            ("selekt 1", "other", ""),
        ];
        assert_eq!(wrong(name_mysql, &statements), [""; 0]);
    }

    #[test]
    fn what_is_cut_is_called_by_its_words() {
        let columns = (0..300).map(|n| format!("col_{n}")).collect::<Vec<_>>().join(", ");
        assert_eq!(name(&format!("select {columns} from t")), ("SELECT".to_owned(), String::new()));
        assert_eq!(Name::of("insert into t(a,b,c", true, &postgres::LANGUAGE).table, "t");
        assert_eq!(Name::of("select x from\"A b\".c where(", true, &postgres::LANGUAGE).table, "A b.c");
    }

    #[test]
    fn deep_nesting_is_refused_and_no_crash() {
        let deep = format!("select {}1{} from t", "(".repeat(400), ")".repeat(400));
        assert_eq!(name(&deep), ("SELECT".to_owned(), "t".to_owned()));
        assert_eq!(name(&"(".repeat(900)).0, "other");
        assert_eq!(name(&format!("select {} 1", "not ".repeat(250))).0, "SELECT");
        assert_eq!(name(&format!("select {} 1", "- ".repeat(250))).0, "SELECT");
    }
}
