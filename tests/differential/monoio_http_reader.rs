//! monoio-http's decoders. They panic on some inputs, which counts as a refusal here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::BytesMut;
use hyper::HeaderMap;
use monoio_codec::{Decoded, Decoder};
use monoio_http::{
    common::{request::Request, response::Response},
    h1::codec::decoder::{
        ChannelWrapper, GenericHeadDecoder, NextDecoder, RequestHeadDecoder, ResponseHeadDecoder,
    },
};

use crate::reading::{Kind, Message, Reading, Start, by_name};

type RequestDecoder = GenericHeadDecoder<Request, RequestHeadDecoder, ChannelWrapper>;
type ResponseDecoder = GenericHeadDecoder<Response, ResponseHeadDecoder, ChannelWrapper>;

pub(crate) fn read(kind: Kind, octets: &[u8]) -> Reading {
    let read = || match kind {
        Kind::Request => read_request(octets),
        Kind::ResponseTo(_) => read_response(octets),
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(message)) => Reading::Whole(message),
        Ok(Err(reading)) => reading,
        Err(_) => Reading::refused("it panicked"),
    }
}

fn read_request(octets: &[u8]) -> Result<Message, Reading> {
    let mut left = BytesMut::from(octets);
    let (request, body) = decoded(RequestDecoder::default().decode(&mut left))?;
    let (parts, _) = request.into_parts();
    let target = match parts.uri.authority() {
        Some(_) => None,
        None => parts.uri.path_and_query().map(|target| target.as_str().as_bytes().to_vec()),
    };
    let start = Start::Request { method: parts.method.to_string(), target };
    finish(start, &parts.headers, body, left, octets.len())
}

/// Interim responses are the caller's business there, so it is done here.
fn read_response(octets: &[u8]) -> Result<Message, Reading> {
    let mut left = BytesMut::from(octets);
    loop {
        let (response, body) = decoded(ResponseDecoder::default().decode(&mut left))?;
        let (parts, _) = response.into_parts();
        if !parts.status.is_informational() {
            let start = Start::Status(parts.status.as_u16());
            return finish(start, &parts.headers, body, left, octets.len());
        }
    }
}

fn finish<F, S>(
    start: Start,
    headers: &HeaderMap,
    body: NextDecoder<F, S, bytes::Bytes>,
    mut left: BytesMut,
    total: usize,
) -> Result<Message, Reading>
where
    F: Decoder<Item = bytes::Bytes>,
    S: Decoder<Item = Option<bytes::Bytes>>,
    F::Error: std::fmt::Debug,
    S::Error: std::fmt::Debug,
{
    let mut content = Vec::new();
    match body {
        NextDecoder::None => {}
        NextDecoder::Fixed(mut decoder, _) => {
            content.extend_from_slice(&decoded(decoder.decode(&mut left))?);
        }
        NextDecoder::Streamed(mut decoder, _) => {
            while let Some(chunk) = decoded(decoder.decode(&mut left))? {
                content.extend_from_slice(&chunk);
            }
        }
    }
    let fields = by_name(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    Ok(Message { start, fields, content, end: total - left.len() })
}

fn decoded<T, E: std::fmt::Debug>(decoded: Result<Decoded<T>, E>) -> Result<T, Reading> {
    match decoded {
        Ok(Decoded::Some(item)) => Ok(item),
        Ok(Decoded::Insufficient | Decoded::InsufficientAtLeast(_)) => Err(Reading::Unfinished),
        Err(error) => Err(Reading::refused(error)),
    }
}
