//! A bucket of S3, or of a server that speaks its protocol.
//!
//! Small objects go in one request, large ones as a multipart upload. S3 hides an unfinished
//! multipart upload from readers, and charges for it until it is aborted.

use std::io::{self, Read, Write};
use std::time::Duration;

use attohttpc::header::{CONTENT_LENGTH, ETAG, HeaderMap, HeaderName};
use s3::command::{Command, Multipart};
use s3::error::S3Error;
use s3::serde_types::{CompleteMultipartUploadData, Part};
use s3::{Bucket, BucketConfiguration, Region};

use self::error::{explain, plain, tag};
use self::request::{ask, head_of, send};
use super::{IfAbsent, Result, SILENCE, Store, StoreError};
use crate::config::snapshot::S3Store;

mod credentials;
mod endpoint;
mod error;
mod request;
mod stale;

pub(super) use credentials::environment_secrets;

/// S3 accepts at most this many parts.
const MAX_PARTS: u64 = 10_000;
/// Most pages of a list, of a thousand objects each. A server can say that there are more for ever.
const MAX_PAGES: usize = 100;
/// A network slower than this many bytes per second counts as broken. The library cannot limit a
/// pause in sending, only a whole request.
const SLOWEST: u64 = 8 * 1024;
const CONTENT_TYPE: &str = "application/octet-stream";

struct S3 {
    bucket: Box<Bucket>,
    /// Prefix of the objects' names: empty, or `path/`.
    prefix: String,
    /// Least size of a part in bytes; also the largest object that goes in one request.
    part_size: u64,
    address: String,
}

pub(super) fn open(settings: &S3Store, missing: IfAbsent) -> Result<impl Store + use<>> {
    // The owner retries, with waits longer than a second.
    s3::set_retries(0);
    let failed = |cause: String| StoreError::failed("s3", "open", cause);
    let endpoint = endpoint::parse(settings).map_err(failed)?;
    let path = settings.path.as_deref().unwrap_or_default();
    let prefix = match crate::address::url::folders(path)
        .map_err(failed)?
        .join("/")
    {
        path if path.is_empty() => path,
        path => format!("{path}/"),
    };
    let address = format!("s3 {}/{}/{prefix}", endpoint.address, settings.bucket);
    let address = address.trim_end_matches('/').to_string();
    let failed = |cause: S3Error| {
        let cause = format!("{}{}", explain(&cause), credentials::hint(settings));
        StoreError::failed(&address, "open the bucket", cause)
    };
    let (bucket, is_there) = find_bucket(settings, endpoint.region).map_err(failed)?;
    match missing {
        _ if is_there => {}
        IfAbsent::Make => {
            make(settings, endpoint.creation_region, bucket.is_path_style()).map_err(failed)?;
        }
        IfAbsent::Refuse => {
            return Err(StoreError::no_place(
                &address,
                "bucket",
                "snapshot.s3.bucket",
            ));
        }
    }
    Ok(S3 {
        bucket,
        prefix,
        part_size: settings.part_size,
        address,
    })
}

/// The bucket, and whether it exists. If the server requires the bucket's name in the host name, it
/// is asked that way.
fn find_bucket(
    settings: &S3Store,
    region: Region,
) -> std::result::Result<(Box<Bucket>, bool), S3Error> {
    let path_style = settings.path_style.unwrap_or(true);
    match find_bucket_with(settings, region.clone(), path_style) {
        Err(error) if settings.path_style.is_none() && error::wants_bucket_in_host(&error) => {
            log::info!("s3: the server wants the bucket's name in the host's: asking it there");
            find_bucket_with(settings, region, false)
        }
        found => found,
    }
}

fn find_bucket_with(
    settings: &S3Store,
    region: Region,
    path_style: bool,
) -> std::result::Result<(Box<Bucket>, bool), S3Error> {
    let credentials = credentials::find(settings)?;
    let mut bucket = Bucket::new(&settings.bucket, region, credentials)?;
    if path_style {
        bucket.set_path_style();
    }
    bucket.set_request_timeout(Some(time_for(0)));
    match list_page(&bucket, "", None, Some(1)) {
        Err(error) if error::code(&error) == Some("NoSuchBucket") => Ok((bucket, false)),
        Err(error) => Err(error),
        Ok(_) => Ok((bucket, true)),
    }
}

fn make(settings: &S3Store, region: Region, path_style: bool) -> std::result::Result<(), S3Error> {
    let name = &settings.bucket;
    let mut config = BucketConfiguration::default();
    // As the library does: servers that know no regions refuse one.
    let skips = std::env::var("RUST_S3_SKIP_LOCATION_CONSTRAINT").unwrap_or_default();
    if !matches!(skips.to_lowercase().as_str(), "true" | "1") {
        config.set_region(region.clone());
    }
    let mut bucket = Bucket::new(name, region, credentials::find(settings)?)?;
    if path_style {
        bucket.set_path_style();
    }
    match head_of(&bucket, "", Command::CreateBucket { config }) {
        // A different node was faster.
        Err(error) if error::code(&error) == Some("BucketAlreadyOwnedByYou") => {}
        Err(error) => return Err(error),
        Ok(_) => log::info!("made the bucket {name} for snapshots"),
    }
    Ok(())
}

/// Keys of objects below `prefix`, and the token of the next page, if there are more.
fn list_page(
    bucket: &Bucket,
    prefix: &str,
    token: Option<String>,
    most: Option<usize>,
) -> std::result::Result<(Vec<String>, Option<String>), S3Error> {
    let command = Command::ListObjectsV2 {
        prefix: prefix.to_owned(),
        delimiter: Some("/".into()),
        continuation_token: token,
        start_after: None,
        max_keys: most,
    };
    let listing = ask(bucket, "/", command)?;
    if !listing.contains("</ListBucketResult>") {
        return Err(io::Error::other("the list of objects has no end, or is none").into());
    }
    let contents = listing.split("<Contents>").skip(1);
    let keys = contents.filter_map(|object| tag(object, "Key").map(plain));
    let next = tag(&listing, "NextContinuationToken").map(plain);
    let is_cut = tag(&listing, "IsTruncated") == Some("true");
    Ok((keys.collect(), next.filter(|_| is_cut)))
}

/// The value of a header.
fn value(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn time_for(bytes: u64) -> Duration {
    4 * SILENCE + Duration::from_secs(bytes / SLOWEST)
}

impl S3 {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn failed(&self, doing: &str, name: &str, cause: &S3Error) -> StoreError {
        let doing = format!("{doing} {name}");
        StoreError::failed(&self.address, doing.trim_end(), explain(cause))
    }

    fn put_parts(
        &mut self,
        key: &str,
        size: u64,
        from: &mut dyn Read,
    ) -> std::result::Result<(), S3Error> {
        stale::abort(&self.bucket, &self.prefix, key);
        let content_type = CONTENT_TYPE;
        let command = Command::InitiateMultipartUpload { content_type };
        let begun = ask(&self.bucket, key, command)?;
        let Some(id) = tag(&begun, "UploadId").map(plain) else {
            return Err(io::Error::other("the server gives the upload no id").into());
        };
        let id = &*id;
        let sent = self.send_parts(key, id, size, from).and_then(|parts| {
            let data = CompleteMultipartUploadData { parts };
            let upload_id = id;
            let command = Command::CompleteMultipartUpload { upload_id, data };
            match ask(&self.bucket, key, command)? {
                done if done.contains("<CompleteMultipartUploadResult") => Ok(()),
                failed => Err(S3Error::HttpFailWithBody(200, failed)), // S3 does so
            }
        });
        if sent.is_err()
            && let Err(error) = stale::abort_one(&self.bucket, key, id)
        {
            let (address, cause) = (&self.address, explain(&error));
            log::debug!("{address}: abort the upload of {key}: {cause}: the next one will do it");
        }
        sent
    }

    fn send_parts(
        &mut self,
        key: &str,
        id: &str,
        size: u64,
        from: &mut dyn Read,
    ) -> std::result::Result<Vec<Part>, S3Error> {
        let part_size = self.part_size.max(size.div_ceil(MAX_PARTS));
        let mut parts = Vec::new();
        let (mut left, mut buffer) = (size, Vec::new());
        self.bucket.set_request_timeout(Some(time_for(part_size)));
        while left > 0 {
            read_into(&mut buffer, from, left.min(part_size))?;
            left -= buffer.len() as u64;
            let number = parts.len() as u32 + 1;
            let headers = self.put_bytes(key, &buffer, Some(Multipart::new(number, id)))?;
            let Some(etag) = value(&headers, &ETAG) else {
                return Err(io::Error::other("the server gives a part no ETag").into());
            };
            parts.push(Part {
                part_number: number,
                etag,
            });
        }
        Ok(parts)
    }

    fn put_bytes(
        &self,
        key: &str,
        content: &[u8],
        multipart: Option<Multipart<'_>>,
    ) -> std::result::Result<HeaderMap, S3Error> {
        let command = Command::PutObject {
            content,
            content_type: CONTENT_TYPE,
            custom_headers: None,
            multipart,
        };
        head_of(&self.bucket, key, command)
    }

    fn put_whole(
        &mut self,
        key: &str,
        size: u64,
        from: &mut dyn Read,
    ) -> std::result::Result<(), S3Error> {
        let mut buffer = Vec::new();
        read_into(&mut buffer, from, size)?;
        self.bucket.set_request_timeout(Some(time_for(size)));
        self.put_bytes(key, &buffer, None).map(drop)
    }

    fn read(&self, key: &str, into: &mut (dyn Write + Send)) -> std::result::Result<(), S3Error> {
        let head = head_of(&self.bucket, key, Command::HeadObject)?;
        let size = value(&head, &CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let size: u64 = size.unwrap_or(0);
        // The whole request has no limit, since it may take long; each read has one.
        let mut bucket = self.bucket.clone();
        bucket.set_request_timeout(None);
        let mut object = send(&bucket, key, Command::GetObject)?;
        let count = io::copy(&mut object, into)?;
        // The library takes a connection that ends early for the end of the object.
        if count != size {
            let text = format!("the connection ended after {count} of {size} bytes");
            return Err(io::Error::other(text).into());
        }
        Ok(into.flush()?)
    }
}

/// Reads exactly `size` bytes: the size of a part or of a small object.
fn read_into(buffer: &mut Vec<u8>, from: &mut dyn Read, size: u64) -> io::Result<()> {
    buffer.clear();
    buffer.reserve_exact(size.try_into().unwrap_or(usize::MAX));
    from.take(size).read_to_end(buffer)?;
    if buffer.len() as u64 == size {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Store for S3 {
    fn address(&self) -> &str {
        &self.address
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        let key = self.key(name);
        let sent = if size <= self.part_size {
            self.put_whole(&key, size, from)
        } else {
            self.put_parts(&key, size, from)
        };
        self.bucket.set_request_timeout(Some(time_for(0)));
        sent.map_err(|cause| self.failed("put", name, &cause))
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        self.read(&self.key(name), into)
            .map_err(|cause| match error::status(&cause) {
                Some(404) => StoreError::not_found(&self.address, name),
                _ => self.failed("get", name, &cause),
            })
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let (mut names, mut token) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let page = list_page(&self.bucket, &self.prefix, token, None);
            let (keys, next) = page.map_err(|cause| self.failed("list", "", &cause))?;
            let keys = keys.iter().filter_map(|key| key.strip_prefix(&self.prefix));
            names.extend(keys.filter(|name| !name.is_empty()).map(str::to_owned));
            token = next;
            if token.is_none() {
                return Ok(names);
            }
        }
        let cause = format!("more than {MAX_PAGES} pages of objects: give it a folder of its own");
        Err(StoreError::failed(&self.address, "list", cause))
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        match head_of(&self.bucket, &self.key(name), Command::DeleteObject) {
            Err(cause) if error::status(&cause) != Some(404) => {
                Err(self.failed("remove", name, &cause))
            }
            _ => Ok(()),
        }
    }
}
