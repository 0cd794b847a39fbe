//! Aborts unfinished uploads, which cost money until then.

use std::collections::HashMap;

use s3::Bucket;
use s3::command::Command;
use s3::error::S3Error;

use super::error::{explain, tag};
use super::request::{ask, head_of};
use crate::clock::{Clock, SystemClock};
use crate::model::timestamp::unix_ms;

/// An upload that began longer ago counts as abandoned: no upload of a snapshot takes as long.
const STALE_MS: i64 = 24 * 60 * 60 * 1000;

/// Aborts earlier uploads to `key`, and old ones below `prefix`. Without a prefix the bucket may
/// also hold uploads of other applications. Then only old uploads are aborted whose keys have the
/// form of ours. Some servers cannot list uploads; no failure here prevents the new upload.
pub(super) fn abort(bucket: &Bucket, prefix: &str, key: &str) {
    let under = match prefix {
        "" => family(key),
        prefix => prefix,
    };
    let listing = match list(bucket, under) {
        Ok(listing) => listing,
        Err(error) => return log::debug!("list uploads below {under}: {}", explain(&error)),
    };
    let now = SystemClock.now_ms();
    for upload in uploads_in(&listing) {
        let ours = match prefix {
            "" => is_like(upload.key, key),
            prefix => upload.key.starts_with(prefix),
        };
        if upload.key != key && !(ours && is_old(upload.initiated, now)) {
            continue;
        }
        match abort_one(bucket, upload.key, upload.id) {
            Ok(()) => log::info!("aborted a broken upload of {}", upload.key),
            Err(error) => log::debug!("abort upload of {}: {}", upload.key, explain(&error)),
        }
    }
}

/// Aborts one upload.
pub(super) fn abort_one(bucket: &Bucket, key: &str, upload_id: &str) -> Result<(), S3Error> {
    head_of(bucket, key, Command::AbortMultipartUpload { upload_id }).map(drop)
}

/// The beginning that all keys of this kind share: `snapshot-`.
fn family(key: &str) -> &str {
    key.find('-').map_or(key, |at| &key[..=at])
}

/// Whether both keys have the form `snapshot-<time>-<node>-<random>.db.zst` and differ only in
/// their numbers.
fn is_like(one: &str, other: &str) -> bool {
    shape(one).is_some_and(|one| Some(one) == shape(other))
}

/// The form of a key without its numbers. Times keep their length for centuries, and random numbers
/// always do.
fn shape(key: &str) -> Option<(&str, usize, usize, &str)> {
    let (words, end) = key.split_once('.')?;
    let parts: Vec<&str> = words.split('-').collect();
    let [first, time, node, random] = parts[..] else {
        return None;
    };
    let is_hex = |number: &str| number.bytes().all(|b| b.is_ascii_hexdigit());
    let numbers = [time, node, random].into_iter().all(is_hex);
    numbers.then_some((first, time.len(), random.len(), end))
}

/// Lists uploads without the library's function, which requires fields that some servers omit. One
/// answer with the first thousand is sufficient.
fn list(bucket: &Bucket, under: &str) -> Result<String, S3Error> {
    let query = [("uploads", ""), ("prefix", under)];
    let query: HashMap<_, _> = query.map(|(k, v)| (k.into(), v.into())).into();
    ask(&bucket.with_extra_query(query)?, "/", Command::GetObject)
}

struct Upload<'a> {
    key: &'a str,
    id: &'a str,
    initiated: &'a str,
}

fn uploads_in(xml: &str) -> impl Iterator<Item = Upload<'_>> {
    xml.split("<Upload>").skip(1).filter_map(|upload| {
        Some(Upload {
            key: tag(upload, "Key")?,
            id: tag(upload, "UploadId")?,
            initiated: tag(upload, "Initiated")?,
        })
    })
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

    #[test]
    fn keys_of_ours_and_of_others() {
        let ours = "snapshot-1763790000000-7-0a1b2c3d.db.zst";
        assert_eq!(family(ours), "snapshot-");
        assert!(is_like("snapshot-1763700000000-4711-ffffffff.db.zst", ours));
        for other in [
            "snapshot-2026-01-01.db.zst",
            "snapshot-1763700000000-7-0a1b2c3d.tar",
            "snapshot-mon-7-0a1b2c3d.db.zst",
            "backup-1763700000000-7-0a1b2c3d.db.zst",
            "a/snapshot-1763700000000-7-0a1b2c3d.db.zst",
            "snapshot-",
            "snapshot",
        ] {
            assert!(!is_like(other, ours), "{other}");
        }
        // Keys without numbers match no key, not even themselves.
        assert!(!is_like("manifest.json", "manifest.json"));
    }

    #[test]
    fn a_listing() {
        let xml = "<ListMultipartUploadsResult><Prefix>p/</Prefix><Upload><Key>p/a</Key>\
                   <Initiator><ID>x</ID></Initiator><UploadId>1</UploadId><Initiated>then\
                   </Initiated></Upload><Upload><Key>p/b</Key><UploadId>2</UploadId></Upload>";
        let uploads: Vec<_> = uploads_in(xml)
            .map(|u| (u.key, u.id, u.initiated))
            .collect();
        assert_eq!(uploads, [("p/a", "1", "then")]);
    }
}
