//! Uploads that came to no end keep costing money until somebody aborts them.

use s3::Bucket;

use super::error::explain;
use crate::clock::{Clock, SystemClock};
use crate::stream::timestamp::unix_ms;

/// Nobody uploads a snapshot for so long.
const STALE_MS: i64 = 24 * 60 * 60 * 1000;

/// Aborts what earlier uploads to `key` left, and those below `prefix` that are old. Without a
/// prefix only the former: the bucket may hold other people's uploads. Not all servers can list
/// uploads, and none of it must keep us from this one.
pub(super) fn abort(bucket: &Bucket, prefix: &str, key: &str) {
    let under = if prefix.is_empty() { key } else { prefix };
    let pages = match bucket.list_multiparts_uploads(Some(under), None) {
        Ok(pages) => pages,
        Err(error) => return log::debug!("list uploads below {under}: {}", explain(&error)),
    };
    let now = SystemClock::new().now_ms();
    for upload in pages.into_iter().flat_map(|page| page.uploads) {
        let old = is_old(&upload.initiated, now) && !prefix.is_empty();
        if !upload.key.starts_with(prefix) || (upload.key != key && !old) {
            continue;
        }
        match bucket.abort_upload(&upload.key, &upload.id) {
            Ok(()) => log::info!("aborted a broken upload of {}", upload.key),
            Err(error) => log::debug!("abort upload of {}: {}", upload.key, explain(&error)),
        }
    }
}

fn is_old(initiated: &str, now: i64) -> bool {
    unix_ms(initiated).is_some_and(|then| now - then > STALE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_old() {
        let now = unix_ms("2026-03-02T00:00:00.000Z").unwrap();
        assert!(is_old("2026-02-28T23:00:00.000Z", now));
        assert!(!is_old("2026-03-01T01:00:00.000Z", now));
        assert!(!is_old("yesterday", now));
    }
}
