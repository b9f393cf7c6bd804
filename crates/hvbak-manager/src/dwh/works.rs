//! Whether the service works on the database that it should: what is asked before and after
//! its start on its machine, and what the answers mean. Reads and nothing else.
//!
//! The service's own word is not enough: another file may win over the edited one, and systemd
//! calls a service active that fails at its first connection. The signs are a session of the
//! service's role in the database that began after the start, or rows that came in since. The
//! engine's `heartBeat` is none: it is the engine that writes it (DwhHeartBeat of the engine).

use crate::remote::Fields;

/// Asks the database that the machine's configuration names: `ask SQL`.
macro_rules! asking {
    () => {
        r#"R=${HVBAK_HOST_ROOT:-}
LC_ALL=C; export LC_ALL
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
for conf in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do [ -r "$conf" ] && . "$conf"; done
export PGPASSWORD="$DWH_DB_PASSWORD" PGCONNECT_TIMEOUT=10 PGAPPNAME=hvbak PGSSLMODE=prefer
case ${DWH_DB_SECURED:-} in [Tt]rue|1) PGSSLMODE=require;; esac
ask() { psql -X -w -At -h "$DWH_DB_HOST" -p "${DWH_DB_PORT:-5432}" -U "$DWH_DB_USER" -d "$DWH_DB_DATABASE" -c "$1" </dev/null 2>/dev/null; }
"#
    };
}

/// `$1` `mark`: where the machine's configuration leads, the database's clock, and what was
/// written to it so far. `$1` `watch`, `$2` clock, `$3` what was written, `$4` seconds: waits
/// for a sign of the service, or its end. May be repeated.
pub const WORKS: &str = concat!(
    asking!(),
    r#"written="select coalesce(sum(n_tup_ins + n_tup_upd), 0)::bigint from pg_stat_user_tables"
if [ "$1" = mark ]; then
  echo "at=$DWH_DB_USER@$DWH_DB_HOST:${DWH_DB_PORT:-5432}/$DWH_DB_DATABASE"
  echo "clock=$(ask 'select extract(epoch from clock_timestamp())::numeric(20, 3)')"
  echo "written=$(ask "$written")"
  exit 0
fi
case $2$3$4 in *[!0-9.]*) exit 64;; esac
active() {
  state=$(systemctl is-active ovirt-engine-dwhd 2>/dev/null | head -n 1)
  case $state in active|activating|reloading) return 0;; esac
  echo "state=$state"
  exit 0
}
end=$(($(date +%s) + $4))
while :; do
  active
  seen=$(ask "select count(*) from pg_stat_activity where datname = current_database() and usename = current_user and pid <> pg_backend_pid() and application_name <> 'hvbak' and backend_start >= to_timestamp($2)")
  grown=$(ask "select ($written) - $3")
  if [ "${seen:-0}" -gt 0 ] || [ "${grown:-0}" -gt 0 ]; then
    # It may connect, not like what it finds, and end.
    sleep 2
    active
    echo sign=yes
    exit 0
  fi
  [ "$(date +%s)" -lt "$end" ] || exit 0
  sleep 1
done
"#
);

/// Who else has worked lately with the service's role on the database that the manager's
/// configuration names. Sessions of a machine that died stay for hours and do nothing.
pub const SESSIONS: &str = concat!(
    asking!(),
    r#"ask 'select 1' >/dev/null || { echo unknown=yes; exit 0; }
ask "select 'other=' || host(client_addr) from pg_stat_activity where datname = current_database() and usename = current_user and client_addr <> inet_client_addr() and greatest(backend_start, query_start, state_change) > now() - interval '5 minutes'" | sort -u
exit 0
"#
);

/// How it was before the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// The database that the configuration leads to, as [`super::Target`] is written.
    pub at: String,
    pub clock: String,
    pub written: String,
}

impl Mark {
    /// Reads the answer; `None`: the database does not tell.
    pub fn parse(text: &str) -> Option<Self> {
        let fields = Fields::new(text);
        let word = |key: &str| fields.first(key).unwrap_or_default().trim().to_owned();
        let mark = Self { at: word("at"), clock: word("clock"), written: word("written") };
        let number = |text: &str| !text.is_empty() && text.parse::<f64>().is_ok();
        (number(&mark.clock) && number(&mark.written)).then_some(mark)
    }
}

/// Why the service does not work there; `None`: it does.
pub fn silence(watched: &str) -> Option<String> {
    let fields = Fields::new(watched);
    if let Some(state) = fields.first("state") {
        let state = if state.is_empty() { "gone" } else { state };
        return Some(format!("the service ended after its start: it is {state}"));
    }
    let none = "no session of the service and no row of it was seen there";
    fields.first("sign").is_none().then(|| none.to_owned())
}

/// Why a machine is not lost, by the answer of [`SESSIONS`]; `None`: nobody else is at work.
pub fn others_at_work(answer: &str) -> Option<String> {
    let fields = Fields::new(answer);
    if fields.first("unknown").is_some() {
        return Some("the database does not say who works on it".to_owned());
    }
    let others: Vec<_> = fields.all("other").collect();
    (!others.is_empty())
        .then(|| format!("its role has worked on the database lately, from {}", others.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sign_of_a_service_that_stays_counts() {
        assert_eq!(silence("sign=yes\n"), None);
        assert!(silence("").unwrap().contains("no session"));
        assert!(silence("state=failed\n").unwrap().contains("it is failed"));
        assert!(silence("state=\nsign=yes\n").unwrap().contains("it is gone"));
        let mark = Mark::parse("at=u@h:1/d\nclock=17.5\nwritten=3\n").unwrap();
        assert_eq!(mark.at, "u@h:1/d");
        for bad in ["", "at=x\nclock=\nwritten=3\n", "clock=1;drop\nwritten=3\n"] {
            assert_eq!(Mark::parse(bad), None);
        }
    }
}
