//! Today's date for templates that tell it to the model (`strftime_now`). Fixed where a run is to be repeatable.

use jiff::Zoned;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::{Environment, Error, ErrorKind};

/// Where `strftime_now` takes the time from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The machine's clock and time zone.
    #[default]
    System,
    /// Always this moment, in UTC.
    Fixed {
        /// Seconds since 1970.
        unix_seconds: i64,
    },
}

impl Clock {
    /// Gives templates a `strftime_now` by this clock.
    pub(super) fn install(self, environment: &mut Environment<'static>) {
        environment.add_function("strftime_now", move |format: &str| self.strftime(format));
    }

    /// Today, as `2025-08-05`.
    pub fn today(self) -> String {
        self.strftime("%Y-%m-%d").expect("every day has a date")
    }

    fn strftime(self, format: &str) -> Result<String, Error> {
        let refuse = |e: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"));
        let now = match self {
            Clock::System => Zoned::now(),
            Clock::Fixed { unix_seconds } => {
                jiff::Timestamp::from_second(unix_seconds).map_err(refuse)?.to_zoned(TimeZone::UTC)
            }
        };
        strtime::format(format, &now).map_err(refuse)
    }
}
