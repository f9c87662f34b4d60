//! Debian's package manager: which release this is, its backports suite, installing packages.
//!
//! Owns one file below `/etc/apt/sources.list.d` and touches no other. Called by `setup` only when something is
//! missing.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::shell;

/// The file that adds the backports suite.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/aimo-engine-backports.sources";

/// Where apt's sources are listed.
const SOURCES_LIST: &str = "/etc/apt/sources.list";
const SOURCES_DIR: &str = "/etc/apt/sources.list.d";

/// A release of a distribution that uses apt.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    /// `ID` of os-release, e.g. `debian`.
    id: String,
    /// `VERSION_CODENAME`, e.g. `bookworm`.
    codename: String,
}

impl Release {
    /// Read from `/etc/os-release`; empty strings where it doesn't say.
    pub fn of_this_machine() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(os_release: &str) -> Self {
        let field = |name: &str| {
            os_release
                .lines()
                .filter_map(|l| l.split_once('='))
                .find(|(k, _)| *k == name)
                .map(|(_, v)| v.trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        Release { id: field("ID"), codename: field("VERSION_CODENAME") }
    }

    /// Whether the release's own Mesa is too old (22.3 in Debian 12).
    pub fn needs_backports(&self) -> bool {
        self.id == "debian" && self.codename == "bookworm"
    }

    /// Name of the backports suite.
    pub fn backports_suite(&self) -> String {
        format!("{}-backports", self.codename)
    }
}

/// The mirror that this machine's apt uses for its own release, e.g. `http://mirror/debian`.
pub fn mirror() -> Option<String> {
    let release = Release::of_this_machine();
    let texts = source_texts();
    let own = |s: &Source| s.suites.contains(&release.codename) && s.components.iter().any(|c| c == "main");
    texts.iter().flat_map(|t| Source::all_in(t)).find(own).map(|s| s.uri)
}

/// Adds the release's backports to apt's sources, from the mirror that the machine already uses for the release.
pub fn add_backports(release: &Release) -> Result<()> {
    let texts = source_texts();
    let suite = release.backports_suite();
    if texts.iter().any(|t| Source::all_in(t).iter().any(|s| s.suites.contains(&suite))) {
        return Ok(());
    }
    let base = texts
        .iter()
        .flat_map(|t| Source::all_in(t))
        .find(|s| s.suites.contains(&release.codename) && s.components.iter().any(|c| c == "main"))
        .with_context(|| {
            format!("apt's sources don't list the suite {}: add {suite} by hand, then run again", release.codename)
        })?;
    shell::step(&format!("adding {suite} to apt's sources ({BACKPORTS_FILE})"));
    shell::write_as_root(BACKPORTS_FILE, &base.with_suite(&suite))
}

/// Refreshes the package lists. A repository that doesn't answer is not fatal: the packages may be known already.
pub fn update() -> Result<()> {
    if let Err(e) = shell::run(shell::as_root("apt-get")?.args(["update", "-q"]).stdin(Stdio::null())) {
        eprintln!("warning: {e:#}; going on with the package lists that are there");
    }
    Ok(())
}

/// Installs packages, from `suite` where one is given.
pub fn install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let mut command = shell::as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends"]);
    if let Some(suite) = suite {
        command.args(["-t", suite]);
    }
    shell::run(command.args(packages).stdin(Stdio::null()))
}

/// The leading number of a Debian version's upstream part: 25 of `1:25.0.7-2~bpo12+1`.
pub fn upstream_major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn source_texts() -> Vec<String> {
    let listed = fs::read_dir(SOURCES_DIR).into_iter().flatten().flatten().map(|e| e.path());
    std::iter::once(Path::new(SOURCES_LIST).to_path_buf())
        .chain(listed)
        .filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources"))
        .filter_map(|p| fs::read_to_string(p).ok())
        .collect()
}

/// One entry of apt's sources (sources.list(5)), in either of the two formats.
#[derive(Debug, Default, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

impl Source {
    fn all_in(text: &str) -> Vec<Source> {
        let one_line = text.lines().filter_map(Source::from_one_line);
        one_line.chain(deb822_stanzas(text).iter().filter_map(|s| Source::from_stanza(s))).collect()
    }

    /// `deb [options] uri suite component…`
    fn from_one_line(line: &str) -> Option<Source> {
        let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
        let mut signed_by = None;
        if let Some(inner) = rest.strip_prefix('[') {
            let (options, after) = inner.split_once(']')?;
            signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
            rest = after;
        }
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some(Source { uri: words.next()?, suites: vec![words.next()?], components: words.collect(), signed_by })
    }

    /// `Types: deb`, `URIs: …`, `Suites: …`, `Components: …`
    fn from_stanza(stanza: &str) -> Option<Source> {
        let field = |name: &str| {
            stanza
                .lines()
                .filter(|l| !l.starts_with('#'))
                .filter_map(|l| l.split_once(':'))
                .find(|(k, _)| k.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.trim().to_owned())
        };
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let is_on = field("Enabled").is_none_or(|v| v != "no");
        let has_packages = field("Types").is_some_and(|t| t.split_whitespace().any(|w| w == "deb"));
        (is_on && has_packages).then_some(())?;
        Some(Source {
            uri: words(field("URIs")?).into_iter().next()?,
            suites: words(field("Suites")?),
            components: words(field("Components")?),
            signed_by: field("Signed-By").filter(|v| !v.is_empty()),
        })
    }

    /// This mirror's stanza for another suite of the same archive.
    fn with_suite(&self, suite: &str) -> String {
        let mut text = format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n", self.uri);
        if let Some(key) = &self.signed_by {
            text += &format!("Signed-By: {key}\n");
        }
        text
    }
}

fn deb822_stanzas(text: &str) -> Vec<String> {
    let mut stanzas = vec![String::new()];
    for line in text.lines() {
        if line.trim().is_empty() {
            stanzas.push(String::new());
        } else if let Some(last) = stanzas.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    stanzas
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment: with a colon\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
        Types: deb-src\nURIs: http://mirror.example/src\nSuites: bookworm\nComponents: main\n";

    #[test]
    fn both_source_formats_are_read() {
        let stanzas = Source::all_in(DEB822);
        assert_eq!(stanzas.len(), 1, "deb-src has no packages to install: {stanzas:?}");
        assert_eq!(stanzas[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(stanzas[0].signed_by.as_deref(), Some("/usr/share/keyrings/k.gpg"));
        let line = "deb [arch=amd64 signed-by=/k.asc] http://mirror.example/debian bookworm main non-free";
        let listed = Source::all_in(&format!("# deb http://off.example bookworm main\n{line}\n"));
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].uri, "http://mirror.example/debian");
        assert_eq!(listed[0].signed_by.as_deref(), Some("/k.asc"));
    }

    #[test]
    fn backports_come_from_the_same_mirror() {
        let text = Source::all_in(DEB822)[0].with_suite("bookworm-backports");
        let again = Source::all_in(&text);
        assert_eq!(again[0].uri, "http://mirror.example/debian");
        assert_eq!(again[0].suites, ["bookworm-backports"]);
        assert_eq!(again[0].signed_by.as_deref(), Some("/usr/share/keyrings/k.gpg"));
    }

    #[test]
    fn a_disabled_stanza_does_not_count() {
        assert!(Source::all_in(&format!("Enabled: no\n{DEB822}")).is_empty());
    }

    #[test]
    fn releases_and_versions() {
        let release = Release::parse("PRETTY_NAME=\"x\"\nID=debian\nVERSION_CODENAME=bookworm\n");
        assert!(release.needs_backports());
        assert_eq!(release.backports_suite(), "bookworm-backports");
        assert!(!Release::parse("ID=ubuntu\nVERSION_CODENAME=noble\n").needs_backports());
        assert_eq!(upstream_major("25.0.7-2~bpo12+1"), Some(25));
        assert_eq!(upstream_major("1:22.3.6-1"), Some(22));
        assert_eq!(upstream_major("unknown"), None);
    }
}
