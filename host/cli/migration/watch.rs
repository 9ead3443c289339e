//! `witan migration watch`, and `--wait` of the commands that begin a migration: follows it until it has ended.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tonic::Code;
use witan_wire::v1::{GetMigrationStatusRequest, GetMigrationStatusResponse};

use super::shown::{bytes, change, number, progress, show};
use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::output::{self, Output, inline};
use crate::config::value::spelled;
use crate::process::signal;

/// Shown below the help.
pub const EXAMPLES: &str = "\
On a terminal, a line shows the phase, how far it is, the rate, how long it still takes and what it waits for. Elsewhere each change is a \
line of its own; with --output json, the migration is printed once, when it has ended. Ctrl-C stops the watching, not the migration. Exit \
code 0: it is completed.

Examples:
  witan migration watch m-17
  witan migration watch m-17 --output json | jq .status";

/// How often the coordinator is asked.
const EVERY: Duration = Duration::from_secs(1);
/// For how long the coordinator may be away: longer than a restart.
const PATIENCE: Duration = Duration::from_secs(60);

/// Follows a migration until it has ended; a success if it is completed.
pub async fn until_completed(global: &Global, migration: String) -> anyhow::Result<ExitCode> {
    until(global, migration, "completed").await
}

/// Follows a migration that is being given up until it has ended; a success if it is cancelled.
pub async fn until_cancelled(global: &Global, migration: String) -> anyhow::Result<ExitCode> {
    until(global, migration, "cancelled").await
}

async fn until(global: &Global, migration: String, wanted: &str) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    let view = View::new(global.output);
    let ended = tokio::select! {
        ended = follow(global, &migration, &view) => {
            view.clear();
            ended?
        }
        () = signal::stopped(stop) => {
            view.clear();
            output::note(&format!("migration {migration} goes on; to follow it again: witan migration watch {migration}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    match global.output {
        Output::Json => drop(show(global.output, &ended)?),
        Output::Text => {
            let why = if ended.error_message.is_empty() { "" } else { ": " };
            let (id, why) = (&ended.migration_id, format!("{why}{}", inline(&ended.error_message)));
            output::line(&format!("migration {id}: {}: {}{why}", change(&ended), ended.status))?
        }
    }
    Ok(if ended.status == wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn follow(global: &Global, migration: &str, view: &View) -> anyhow::Result<GetMigrationStatusResponse> {
    let mut client = client::coordinator(global).await?;
    let (mut heard, mut first) = (Instant::now(), None);
    loop {
        let request = within(global, GetMigrationStatusRequest { migration_id: migration.to_owned() });
        match client.get_migration_status(request).await {
            Ok(answer) => {
                let now = answer.into_inner();
                heard = Instant::now();
                let (since, sent) = *first.get_or_insert((heard, progress(&now).bytes_migrated));
                let rate = rate(progress(&now).bytes_migrated - sent, heard - since);
                if matches!(now.status.as_str(), "completed" | "cancelled" | "failed") {
                    return Ok(now);
                }
                view.show(&now, rate)?;
            }
            // A coordinator that restarts: the migration goes on meanwhile.
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
                    && heard.elapsed() < PATIENCE =>
            {
                view.away();
            }
            Err(status) => return Err(Problem::query(status).into()),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Bytes per second, as soon as that says something.
fn rate(sent: i64, over: Duration) -> Option<u64> {
    let sent = u64::try_from(sent).ok().filter(|sent| *sent > 0)?;
    (over >= EVERY / 2).then(|| (sent as f64 / over.as_secs_f64()) as u64)
}

/// Where progress is shown.
enum View {
    Terminal(ProgressBar),
    /// The line that was printed last.
    Lines(std::cell::RefCell<String>),
    Nowhere,
}

impl View {
    fn new(output: Output) -> Self {
        match output {
            Output::Json => Self::Nowhere,
            Output::Text if std::io::stderr().is_terminal() => {
                // In parts of a thousand.
                let bar = ProgressBar::new(1000);
                let style = ProgressStyle::with_template("{bar:30} {msg}  {elapsed}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.enable_steady_tick(Duration::from_millis(500));
                Self::Terminal(bar)
            }
            Output::Text => Self::Lines(std::cell::RefCell::default()),
        }
    }

    fn show(&self, now: &GetMigrationStatusResponse, rate: Option<u64>) -> std::io::Result<()> {
        match self {
            Self::Terminal(bar) => {
                bar.set_position((progress(now).percentage * 10.0) as u64);
                bar.set_message(output::inline(&line(now, rate)).into_owned());
            }
            Self::Lines(last) => {
                let text = format!("{}: {}", now.migration_id, line(now, None));
                if last.replace(text.clone()) != text {
                    return output::line(&text);
                }
            }
            Self::Nowhere => {}
        }
        Ok(())
    }

    fn away(&self) {
        if let Self::Terminal(bar) = self {
            bar.set_message("the coordinator cannot be reached; trying again");
        }
    }

    fn clear(&self) {
        if let Self::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// How far a migration is, in a line.
fn line(now: &GetMigrationStatusResponse, rate: Option<u64>) -> String {
    let done = progress(now);
    let phase = match (now.phase.as_str(), now.status.as_str()) {
        _ if now.cancel_requested => "moves back",
        ("", status) => status,
        (phase, _) => phase,
    };
    let mut parts = vec![phase.to_owned(), format!("{:.1} %", done.percentage)];
    if done.total_keys > 0 {
        parts.push(format!("{} of about {} keys", number(done.keys_migrated), number(done.total_keys)));
    }
    if done.bytes_migrated > 0 {
        parts.push(bytes(u64::try_from(done.bytes_migrated).unwrap_or(0)));
    }
    if let Some(rate) = rate {
        parts.push(format!("{}/s", bytes(rate)));
        let left = u64::try_from(done.total_bytes - done.bytes_migrated).unwrap_or(0);
        if left > 0 && rate > 0 {
            parts.push(format!("about {} left", spelled(Duration::from_secs(left.div_ceil(rate)))));
        }
    }
    if now.tenants_total > 1 {
        parts.push(format!("{} of {} tenants", now.tenants_done, now.tenants_total));
    }
    if !now.message.is_empty() {
        parts.push(now.message.clone());
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use witan_wire::v1::MigrationProgress;

    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_what_it_waits_for() {
        let mut now = GetMigrationStatusResponse { status: "pending".to_owned(), ..Default::default() };
        assert_eq!(line(&now, None), "pending  0.0 %");
        now = GetMigrationStatusResponse {
            status: "in_progress".to_owned(),
            phase: "data_copy".to_owned(),
            progress: Some(MigrationProgress {
                keys_migrated: 1200,
                total_keys: 4800,
                percentage: 25.0,
                bytes_migrated: 3 << 20,
                total_bytes: 12 << 20,
            }),
            tenants_done: 1,
            tenants_total: 7,
            message: "waits for node n4".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            line(&now, Some(1 << 20)),
            "data_copy  25.0 %  1,200 of about 4,800 keys  3.0 MiB  1.0 MiB/s  about 9s left  1 of 7 tenants  waits for node n4"
        );
        now.cancel_requested = true;
        assert!(line(&now, None).starts_with("moves back  25.0 %"));
    }

    #[test]
    fn a_rate_needs_bytes_and_time() {
        assert_eq!(rate(0, Duration::from_secs(9)), None);
        assert_eq!(rate(-1, Duration::from_secs(9)), None);
        assert_eq!(rate(100, Duration::ZERO), None);
        assert_eq!(rate(100, Duration::from_secs(2)), Some(50));
    }
}
