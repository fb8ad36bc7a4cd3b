//! `/`: the state of the agent at a glance, without a script.

use std::fmt::Write as _;
use std::time::Duration;

use super::App;
use crate::doctor::state_name;
use crate::probes::{State, Status};

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>perf-agent</title><style>
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e9; --page: #f6f7f9; --card: #fff;
  --attached: #157347; --unsupported: #8a6100; --failed: #b3261e; --disabled: #5b6675; --link: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #2d3542; --page: #12161c;
  --card: #1a2029; --attached: #5fd08f; --unsupported: #e5b750; --failed: #ff8a80; --disabled: #9aa5b4; --link: #8ab4f8; } }
* { box-sizing: border-box } body { margin: 0; padding: 2rem 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif } main { max-width: 62rem; margin: auto }
h1 { margin: 0; font-size: 1.5rem } h2 { margin: 2rem 0 .5rem; font-size: 1rem } a { color: var(--link) }
.facts { color: var(--soft); margin: .25rem 0 1rem } nav a { margin-right: 1.25rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow-x: auto }
table { border-collapse: collapse; width: 100% } th, td { padding: .5rem .9rem; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600; font-size: .8rem } tr + tr, tbody tr { border-top: 1px solid var(--line) }
code { font: .85rem ui-monospace, monospace } .remedy { color: var(--soft) } .empty { padding: .9rem }
.state { font-weight: 600; white-space: nowrap } .state::before { content: "\25CF\00A0" }
.attached { color: var(--attached) } .unsupported { color: var(--unsupported) }
.failed { color: var(--failed) } .disabled { color: var(--disabled) }
</style></head><body><main>
"#;

pub(super) fn page(app: &App) -> String {
    let mut out = String::with_capacity(8 << 10);
    out.push_str(HEAD);
    let uptime = duration(app.started.elapsed());
    // Writing to a string does not fail.
    _ = write!(
        out,
        "<h1>perf-agent</h1><p class=\"facts\">version {} &middot; up {uptime} &middot; Linux {}</p>\n\
         <nav><a href=\"{}\">Metrics</a><a href=\"/probes\">Probes as JSON</a>\
         <a href=\"/requests\">Failed and slow requests</a><a href=\"/healthz\">Health</a>\
         <a href=\"/readyz\">Readiness</a></nav>\n<h2>Probes</h2>\n<div class=\"card\">",
        app.version,
        escape(&app.kernel),
        escape(&app.telemetry_path),
    );
    match app.status() {
        None => out.push_str("<div class=\"empty\">The probes are being attached.</div>"),
        Some(status) if status.is_empty() => {
            out.push_str("<div class=\"empty\">No probe is switched on.</div>");
        }
        Some(status) => table(&mut out, &status),
    }
    out.push_str("</div>\n</main></body></html>\n");
    out
}

fn table(out: &mut String, status: &[Status]) {
    out.push_str("<table><thead><tr><th>Probe<th>Hook<th>State<th>Reason and remedy</tr></thead><tbody>\n");
    for Status { probe, hook, state, reason, remedy } in status {
        let state = state_name(*state);
        _ = write!(
            out,
            "<tr><td>{}<td><code>{}</code><td><span class=\"state {state}\">{state}</span><td>{}",
            escape(probe),
            escape(hook),
            escape(reason)
        );
        if !remedy.is_empty() {
            _ = write!(out, "<div class=\"remedy\">{}</div>", escape(remedy));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table>");
    let attached = status.iter().filter(|hook| hook.state == State::Attached).count();
    _ = write!(out, "<div class=\"empty remedy\">{attached} of {} hooks attached.</div>", status.len());
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

/// The two largest units: `3d 4h`, `12m 5s`.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        86_400.. => format!("{days}d {hours}h"),
        3_600.. => format!("{hours}h {minutes}m"),
        60.. => format!("{minutes}m {}s", seconds % 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_text_and_no_markup() {
        let mut out = String::new();
        table(
            &mut out,
            &[Status {
                probe: "tcp",
                hook: "tp_btf/<b>".to_owned(),
                state: State::Failed,
                reason: "a & \"b\" <script>".to_owned(),
                remedy: "it's".to_owned(),
            }],
        );
        assert!(out.contains("tp_btf/&lt;b&gt;"), "{out}");
        assert!(
            out.contains("a &amp; &quot;b&quot; &lt;script&gt;<div class=\"remedy\">it&#39;s</div>"),
            "{out}"
        );
        assert!(out.contains("<span class=\"state failed\">failed</span>"), "{out}");
    }

    #[test]
    fn durations() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3_725, "1h 2m"), (86_400, "1d 0h"), (273_600, "3d 4h")]
        {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
    }
}
