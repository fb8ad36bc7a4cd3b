//! MySQL's and MariaDB's part of [`super::db`]: the language of their statements, and commands that are none. See
//! `perf-ebpf/src/bin/l7/mysql.rs`.

use perf_common::mysql::command_name;
use sqlparser::dialect::MySqlDialect;

use super::db::{Language, Name};

pub(super) static LANGUAGE: Language =
    Language { dialect: &MySqlDialect {}, quote: '`', commands: &COMMANDS };

const COMMANDS: [&str; 58] = [
    "ALTER",
    "ANALYZE",
    "BACKUP",
    "BEGIN",
    "BINLOG",
    "CACHE",
    "CALL",
    "CHANGE",
    "CHECK",
    "CHECKSUM",
    "COMMIT",
    "CREATE",
    "DEALLOCATE",
    "DELETE",
    "DESC",
    "DESCRIBE",
    "DO",
    "DROP",
    "EXECUTE",
    "EXPLAIN",
    "FLUSH",
    "GET",
    "GRANT",
    "HANDLER",
    "HELP",
    "IMPORT",
    "INSERT",
    "INSTALL",
    "KILL",
    "LOAD",
    "LOCK",
    "OPTIMIZE",
    "PREPARE",
    "PURGE",
    "RELEASE",
    "RENAME",
    "REPAIR",
    "REPLACE",
    "RESET",
    "RESIGNAL",
    "REVOKE",
    "ROLLBACK",
    "SAVEPOINT",
    "SELECT",
    "SET",
    "SHOW",
    "SHUTDOWN",
    "SIGNAL",
    "START",
    "STOP",
    "TABLE",
    "TRUNCATE",
    "UNINSTALL",
    "UNLOCK",
    "UPDATE",
    "USE",
    "VALUES",
    "WITH",
];

/// What a command is called that is no statement, by what stands in the place of a fingerprint.
pub(super) fn command(fingerprint: u64) -> Option<Name> {
    let query_type = command_name(fingerprint)?.to_owned();
    Some(Name { query_type, table: String::new(), is_blocking: false })
}

#[cfg(test)]
mod tests {
    use perf_common::sql::OTHER;

    use super::*;

    #[test]
    fn commands_have_their_names_and_statements_none_of_them() {
        assert_eq!(command(0x0e).unwrap().query_type, "PING");
        assert_eq!(command(0xff).unwrap().query_type, "other");
        assert_eq!((command(OTHER), command(256)), (None, None));
    }
}
