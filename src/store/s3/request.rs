//! Requests whose answers are limited. The library signs them; sent by it, an error of any length
//! would be read whole, and the server chooses the length.

use std::io::Read;

use attohttpc::header::{HeaderMap, HeaderName};
use attohttpc::{Method, RequestBuilder, Response};
use s3::Bucket;
use s3::command::{Command, HttpMethod};
use s3::error::S3Error;
use s3::request::Request;
use s3::request::blocking::AttoRequest;

/// Most bytes that are read of an error.
const ERROR_BYTES: u64 = 16 << 10;

/// Most bytes of any other answer that is no object: a list of a thousand names of the greatest
/// length.
const ANSWER_BYTES: u64 = 4 << 20;

/// Sends a request. Fails if the status of the answer is no success.
pub(super) fn send(bucket: &Bucket, path: &str, command: Command<'_>) -> Result<Response, S3Error> {
    let request = AttoRequest::new(bucket, path, command)?;
    let method = match request.command().http_verb() {
        HttpMethod::Get => Method::GET,
        HttpMethod::Head => Method::HEAD,
        HttpMethod::Put => Method::PUT,
        HttpMethod::Post => Method::POST,
        HttpMethod::Delete => Method::DELETE,
    };
    let mut builder = RequestBuilder::try_new(method, request.url()?)?;
    for (name, value) in &request.headers()? {
        let name = HeaderName::from_bytes(name.as_ref())?;
        builder = builder.header(name, value.to_str()?);
    }
    if let Some(timeout) = bucket.request_timeout {
        builder = builder.timeout(timeout);
    }
    let response = builder.bytes(request.request_body()?).send()?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    Err(S3Error::HttpFailWithBody(
        status,
        text(response, ERROR_BYTES),
    ))
}

/// The text of an answer, cut after `most` bytes. A connection that breaks cuts it, too.
fn text(response: Response, most: u64) -> String {
    let mut bytes = Vec::new();
    let _ = response.take(most).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a request whose answer is XML.
pub(super) fn ask(bucket: &Bucket, path: &str, command: Command<'_>) -> Result<String, S3Error> {
    send(bucket, path, command).map(|response| text(response, ANSWER_BYTES))
}

/// Sends a request and returns the head of its answer alone.
pub(super) fn head_of(
    bucket: &Bucket,
    path: &str,
    command: Command<'_>,
) -> Result<HeaderMap, S3Error> {
    send(bucket, path, command).map(|response| response.headers().clone())
}
