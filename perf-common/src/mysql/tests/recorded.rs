//! A conversation with MariaDB 10.11, as it passed over the wire: who speaks (the client: `true`) and what.

/// With a marker between definitions and rows.
#[rustfmt::skip]
pub(super) const WITH_MARKERS: &[(bool, &[u8])] = &[
    (false, b"d\0\0\0\x0a5.5.5-10.11.19-MariaDB-0+deb12u1\0\x07\0\0\0HW^PV?vW\0\xfe\xf7\x08\x02\0\xff\x81\x15\0\0\
        \0\0\0\0\x1d\0\0\x000)zNU@#,Q6W6\0mysql_native_password\0"),
    (true, b"<\0\0\x01\x81\xa2\x0f\0\0\0\0\x01!\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0root\0\0mysql_native\
        _password\0"),
    (false, b"\x07\0\0\x02\0\0\0\x02\0\0\0"),
    (true, b"4\0\0\0\x03create temporary table test.t(a int, b varchar(20))"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"*\0\0\0\x03insert into test.t values (1,'x'),(2,'y')"),
    (false, b".\0\0\x01\0\x02\0\x02\0\0\0&Records: 2  Duplicates: 0  Warnings: 0"),
    (true, b"+\0\0\0\x03select a, b from test.t where b <> 'it\\'s'"),
    (false, b"\x01\0\0\x01\x02\x1e\0\0\x02\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x0b\0\0\0\x03\0\0\0\0\0\x1e\0\
        \0\x03\x03def\x04test\x01t\x01t\x01b\x01b\x0c!\0<\0\0\0\xfd\0\0\0\0\0\x05\0\0\x04\xfe\0\0\"\0\x04\0\
        \0\x05\x011\x01x\x04\0\0\x06\x012\x01y\x05\0\0\x07\xfe\0\0\"\0"),
    (true, b"\x1a\0\0\0\x03select * from test.nosuch"),
    (false, b"*\0\0\x01\xffz\x04#42S02Table 'test.nosuch' doesn't exist"),
    (true, b"%\0\0\0\x03select 1; select a from test.t; do 0"),
    (false, b"\x01\0\0\x01\x01\x17\0\0\x02\x03def\0\0\0\x011\0\x0c?\0\x01\0\0\0\x03\x81\0\0\0\0\x05\0\0\x03\xfe\0\
        \0\x0a\0\x02\0\0\x04\x011\x05\0\0\x05\xfe\0\0\x0a\0\x01\0\0\x06\x01\x1e\0\0\x07\x03def\x04test\x01t\
        \x01t\x01a\x01a\x0c?\0\x0b\0\0\0\x03\0\0\0\0\0\x05\0\0\x08\xfe\0\0*\0\x02\0\0\x09\x011\x02\0\0\x0a\
        \x012\x05\0\0\x0b\xfe\0\0*\0\x07\0\0\x0c\0\0\0\x02\0\0\0"),
    (true, b"\x01\0\0\0\x0e"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x05\0\0\0\x02test"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x01\0\0\0\x09"),
    (false, b"q\0\0\x01Uptime: 54  Threads: 1  Questions: 80  Slow queries: 0  Opens: 21  Open tables: 10  Queries\
        \x20per second avg: 1.481"),
    (true, b"\x01\0\0\0\x1f"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"0\0\0\0\x03create temporary table test.t select 2 a, 'y' b"),
    (false, b".\0\0\x01\0\x01\0\x02\0\0\0&Records: 1  Duplicates: 0  Warnings: 0"),
    (true, b",\0\0\0\x16select a from test.t where a > ? and b <> ?"),
    (false, b"\x0c\0\0\x01\0\x0a\0\0\0\x01\0\x02\0\0\0\0\x17\0\0\x02\x03def\0\0\0\x01?\0\x0c?\0\0\0\0\0\x06\x80\0\
        \0\0\0\x17\0\0\x03\x03def\0\0\0\x01?\0\x0c?\0\0\0\0\0\x06\x80\0\0\0\0\x05\0\0\x04\xfe\0\0\x02\0\x1e\
        \0\0\x05\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\x05\0\0\x06\xfe\0\0\
        \x02\0"),
    (true, b"\x16\0\0\0\x17\x0a\0\0\0\0\x01\0\0\0\0\x01\x03\0\xfd\0\0\0\0\0\x01z"),
    (false, b"\x01\0\0\x01\x01\x1e\0\0\x02\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\
        \x05\0\0\x03\xfe\0\0\"\0\x06\0\0\x04\0\0\x02\0\0\0\x05\0\0\x05\xfe\0\0\"\0"),
    (true, b"\x0b\0\0\0\x18\x0a\0\0\0\x01\0long"),
    (true, b"\x05\0\0\0\x1a\x0a\0\0\0"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x16\0\0\0\x17\x0a\0\0\0\x01\x01\0\0\0\0\x01\x03\0\xfd\0\0\0\0\0\x01z"),
    (false, b"\x01\0\0\x01\x01\x1e\0\0\x02\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\
        \x05\0\0\x03\xfe\0\0b\0"),
    (true, b"\x09\0\0\0\x1c\x0a\0\0\0\x01\0\0\0"),
    (false, b"\x06\0\0\x01\0\0\x02\0\0\0\x05\0\0\x02\xfe\0\0B\0"),
    (true, b"\x09\0\0\0\x1c\x0a\0\0\0\xff\0\0\0"),
    (false, b"\x05\0\0\x01\xfe\0\0\x82\0"),
    (true, b"\x05\0\0\0\x19\x0a\0\0\0"),
    (true, b"\x05\0\0\0\x16do 0"),
    (false, b"\x0c\0\0\x01\0\x0b\0\0\0\0\0\0\0\0\0\0"),
    (true, b"\x0a\0\0\0\x17\x0b\0\0\0\0\x01\0\0\0"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x06\0\0\0\x16selec"),
    (false, b"\xa2\0\0\x01\xff(\x04#42000You have an error in your SQL syntax; check the manual that corresponds t\
        o your MariaDB server version for the right syntax to use near 'selec' at line 1"),
    (true, b"\x0a\0\0\0\x17c\0\0\0\0\x01\0\0\0"),
    (false, b"M\0\0\x01\xff\xdb\x04#HY000Unknown prepared statement handler (99) given to mysqld_stmt_execute"),
    (true, b"\x03\0\0\0\x04t\0"),
    (false, b" \0\0\x01\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\x010\x1f\0\0\x02\x03\
        def\x04test\x01t\x01t\x01b\x01b\x0c!\0\x03\0\0\0\xfd\x01\x10\0\0\0\0\x05\0\0\x03\xfe\0\0\x02\0"),
    (true, b"F\0\0\0\x03load data local infile 'f' into table test.t fields terminated by ','"),
    (false, b"\x02\0\0\x01\xfbf"),
    (true, b"\x04\0\0\x023,z\x0a"),
    (true, b"\0\0\0\x03"),
    (false, b"7\0\0\x04\0\x01\0\x02\0\0\0/Records: 1  Deleted: 0  Skipped: 0  Warnings: 0"),
    (true, b"\x03\0\0\0\x1b\0\0"),
    (false, b"\x05\0\0\x01\xfe\0\0\x02\0"),
    (true, b"\x01\0\0\0\x01"),
];

/// Without it (`CLIENT_DEPRECATE_EOF`).
#[rustfmt::skip]
pub(super) const WITHOUT_MARKERS: &[(bool, &[u8])] = &[
    (false, b"d\0\0\0\x0a5.5.5-10.11.19-MariaDB-0+deb12u1\0\x08\0\0\0~,_yccI\"\0\xfe\xf7\x08\x02\0\xff\x81\x15\0\0\
        \0\0\0\0\x1d\0\0\0ku/$g[sQy.u'\0mysql_native_password\0"),
    (true, b"<\0\0\x01\x81\xa2\x0f\x01\0\0\0\x01!\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0root\0\0mysql_nati\
        ve_password\0"),
    (false, b"\x07\0\0\x02\0\0\0\x02\0\0\0"),
    (true, b"4\0\0\0\x03create temporary table test.t(a int, b varchar(20))"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"*\0\0\0\x03insert into test.t values (1,'x'),(2,'y')"),
    (false, b".\0\0\x01\0\x02\0\x02\0\0\0&Records: 2  Duplicates: 0  Warnings: 0"),
    (true, b"+\0\0\0\x03select a, b from test.t where b <> 'it\\'s'"),
    (false, b"\x01\0\0\x01\x02\x1e\0\0\x02\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x0b\0\0\0\x03\0\0\0\0\0\x1e\0\
        \0\x03\x03def\x04test\x01t\x01t\x01b\x01b\x0c!\0<\0\0\0\xfd\0\0\0\0\0\x04\0\0\x04\x011\x01x\x04\0\0\
        \x05\x012\x01y\x07\0\0\x06\xfe\0\0\"\0\0\0"),
    (true, b"\x1a\0\0\0\x03select * from test.nosuch"),
    (false, b"*\0\0\x01\xffz\x04#42S02Table 'test.nosuch' doesn't exist"),
    (true, b"%\0\0\0\x03select 1; select a from test.t; do 0"),
    (false, b"\x01\0\0\x01\x01\x17\0\0\x02\x03def\0\0\0\x011\0\x0c?\0\x01\0\0\0\x03\x81\0\0\0\0\x02\0\0\x03\x011\
        \x07\0\0\x04\xfe\0\0\x0a\0\0\0\x01\0\0\x05\x01\x1e\0\0\x06\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\
        \x0b\0\0\0\x03\0\0\0\0\0\x02\0\0\x07\x011\x02\0\0\x08\x012\x07\0\0\x09\xfe\0\0*\0\0\0\x07\0\0\x0a\0\
        \0\0\x02\0\0\0"),
    (true, b"\x01\0\0\0\x0e"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x05\0\0\0\x02test"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x01\0\0\0\x09"),
    (false, b"r\0\0\x01Uptime: 59  Threads: 1  Questions: 106  Slow queries: 0  Opens: 23  Open tables: 10  Querie\
        s per second avg: 1.796"),
    (true, b"\x01\0\0\0\x1f"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"0\0\0\0\x03create temporary table test.t select 2 a, 'y' b"),
    (false, b".\0\0\x01\0\x01\0\x02\0\0\0&Records: 1  Duplicates: 0  Warnings: 0"),
    (true, b",\0\0\0\x16select a from test.t where a > ? and b <> ?"),
    (false, b"\x0c\0\0\x01\0\x0d\0\0\0\x01\0\x02\0\0\0\0\x17\0\0\x02\x03def\0\0\0\x01?\0\x0c?\0\0\0\0\0\x06\x80\0\
        \0\0\0\x17\0\0\x03\x03def\0\0\0\x01?\0\x0c?\0\0\0\0\0\x06\x80\0\0\0\0\x1e\0\0\x04\x03def\x04test\x01\
        t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0"),
    (true, b"\x16\0\0\0\x17\x0d\0\0\0\0\x01\0\0\0\0\x01\x03\0\xfd\0\0\0\0\0\x01z"),
    (false, b"\x01\0\0\x01\x01\x1e\0\0\x02\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\
        \x06\0\0\x03\0\0\x02\0\0\0\x07\0\0\x04\xfe\0\0\"\0\0\0"),
    (true, b"\x0b\0\0\0\x18\x0d\0\0\0\x01\0long"),
    (true, b"\x05\0\0\0\x1a\x0d\0\0\0"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x16\0\0\0\x17\x0d\0\0\0\x01\x01\0\0\0\0\x01\x03\0\xfd\0\0\0\0\0\x01z"),
    (false, b"\x01\0\0\x01\x01\x1e\0\0\x02\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\
        \x07\0\0\x03\xfe\0\0b\0\0\0"),
    (true, b"\x09\0\0\0\x1c\x0d\0\0\0\x01\0\0\0"),
    (false, b"\x06\0\0\x01\0\0\x02\0\0\0\x07\0\0\x02\xfe\0\0B\0\0\0"),
    (true, b"\x09\0\0\0\x1c\x0d\0\0\0\xff\0\0\0"),
    (false, b"\x07\0\0\x01\xfe\0\0\x82\0\0\0"),
    (true, b"\x05\0\0\0\x19\x0d\0\0\0"),
    (true, b"\x05\0\0\0\x16do 0"),
    (false, b"\x0c\0\0\x01\0\x0e\0\0\0\0\0\0\0\0\0\0"),
    (true, b"\x0a\0\0\0\x17\x0e\0\0\0\0\x01\0\0\0"),
    (false, b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
    (true, b"\x06\0\0\0\x16selec"),
    (false, b"\xa2\0\0\x01\xff(\x04#42000You have an error in your SQL syntax; check the manual that corresponds t\
        o your MariaDB server version for the right syntax to use near 'selec' at line 1"),
    (true, b"\x0a\0\0\0\x17c\0\0\0\0\x01\0\0\0"),
    (false, b"M\0\0\x01\xff\xdb\x04#HY000Unknown prepared statement handler (99) given to mysqld_stmt_execute"),
    (true, b"\x03\0\0\0\x04t\0"),
    (false, b" \0\0\x01\x03def\x04test\x01t\x01t\x01a\x01a\x0c?\0\x01\0\0\0\x03\x01\x10\0\0\0\x010\x1f\0\0\x02\x03\
        def\x04test\x01t\x01t\x01b\x01b\x0c!\0\x03\0\0\0\xfd\x01\x10\0\0\0\0\x07\0\0\x03\xfe\0\0\x02\0\0\0"),
    (true, b"F\0\0\0\x03load data local infile 'f' into table test.t fields terminated by ','"),
    (false, b"\x02\0\0\x01\xfbf"),
    (true, b"\x04\0\0\x023,z\x0a"),
    (true, b"\0\0\0\x03"),
    (false, b"7\0\0\x04\0\x01\0\x02\0\0\0/Records: 1  Deleted: 0  Skipped: 0  Warnings: 0"),
    (true, b"\x03\0\0\0\x1b\0\0"),
    (false, b"\x07\0\0\x01\xfe\0\0\x02\0\0\0"),
    (true, b"\x01\0\0\0\x01"),
];
