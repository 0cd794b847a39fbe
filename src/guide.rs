//! The guide: the documents in `src/guide/`, one chapter per file.
//!
//! The README is for a first hour with HarmonyLite, these chapters for everything after it. A
//! chapter names others by reference links (`[Format][format]`), which lead to a file where the
//! chapter is read as a file, and to a module here.

/// Makes a module of a chapter. The links come before the text, because of two definitions of one
/// name the first counts.
macro_rules! chapter {
    ($(#[doc = $about:literal])* $name:ident, $file:literal) => {
        $(#[doc = $about])*
        #[doc = ""]
        #[doc = "[applications]: crate::guide::applications"]
        #[doc = "[boxes]: crate::guide::boxes"]
        #[doc = "[changelog]: crate::guide::changelog"]
        #[doc = "[configuration]: crate::guide::configuration"]
        #[doc = "[design]: crate::guide::design"]
        #[doc = "[format]: crate::guide::format"]
        #[doc = "[operations]: crate::guide::operations"]
        #[doc = "[performance]: crate::guide::performance"]
        #[doc = "[security]: crate::guide::security"]
        #[doc = "[testing]: crate::guide::testing"]
        #[doc = "[troubleshooting]: crate::guide::troubleshooting"]
        #[doc = ""]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

chapter! {
    /// Applications that work, the needs of each, migrations, and promises that are not made.
    applications, "guide/applications.md"
}
chapter! {
    /// Installing, the command line, rights, health, snapshots, backups, the way from Go.
    operations, "guide/operations.md"
}
chapter! {
    /// Raspberry Pi, OpenWrt, busybox: from an empty box to syncing, and what it costs.
    boxes, "guide/boxes.md"
}
chapter! {
    /// The trust in users, programs and logins; files, HTTP, secrets, rights.
    security, "guide/security.md"
}
chapter! {
    /// Symptoms, with their meaning and remedy.
    troubleshooting, "guide/troubleshooting.md"
}
chapter! {
    /// Why HarmonyLite is built as it is.
    design, "guide/design.md"
}
chapter! {
    /// All that is stored or sent, byte by byte.
    format, "guide/format.md"
}
chapter! {
    /// The commands that prove the promises, how to read a failure, how to change the code.
    testing, "guide/testing.md"
}
chapter! {
    /// The costs of HarmonyLite, with the commands that print the numbers.
    performance, "guide/performance.md"
}
chapter! {
    /// The changes from release to release.
    changelog, "guide/changelog.md"
}

/// Every key of the configuration, as `config.toml` describes it.
#[doc = "```toml"]
#[doc = include_str!("../config.toml")]
#[doc = "```"]
pub mod configuration {}

#[cfg(test)]
mod tests;
