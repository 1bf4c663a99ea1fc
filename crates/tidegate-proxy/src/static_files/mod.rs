//! A folder as a backend: files with ranges, validators, index, listing and precompressed siblings.
//!
//! ```text
//! path ─► segments ─► resolve (blocking: stat, open) ─► preconditions ─► range ─► body in chunks
//! ```
//!
//! Serves regular files below the root only: nothing through `..`, nothing through a symbolic link that
//! leads out, no dotfiles except `/.well-known`. Must not buffer a file.

mod body;
mod conditional;
mod listing;
mod resolve;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tidegate_model::StaticFolder;

use crate::body::Body;
use crate::filters::accept_encoding;
use crate::normalize::Refusal;
use crate::rewrite;

use body::Piece;
use conditional::{Outcome, Part, Validators};
use resolve::{Coding, Found, FoundFile, Question};

/// What a URI path cannot hold as it is.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

const NOT_FOUND: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    reason: "FileNotFound",
    message: "there is no such file",
};

/// Answers a request from the folder. A refusal gets an error page from the caller; answers such as 304,
/// 412 and 416 come complete and without a body.
pub(crate) async fn serve(
    folder: &StaticFolder,
    method: &Method,
    target: &PathAndQuery,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refusal> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allow);
        return Ok(response);
    }
    let question = Question {
        root: folder.root.clone(),
        path: resolve::relative(target.path(), &folder.strip_prefix).ok_or(NOT_FOUND)?,
        is_folder: target.path().ends_with('/'),
        index: folder.index.clone(),
        listing: folder.listing,
        fallback: folder.fallback.clone(),
        codings: acceptable(headers),
    };
    // One hop to a blocking thread for all of stat, open and the first chunk.
    let found = tokio::task::spawn_blocking(move || question.answer())
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("the look-up was cancelled")));
    let found = found.map_err(|error| refusal(&error))?;
    let mut response = match found {
        Found::File(file) => respond_file(file, method, headers),
        Found::Folder => redirect_to_folder(target)?,
        Found::Listing(entries) => listing::page(target.path(), &entries),
    };
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if method == Method::HEAD {
        *response.body_mut() = Body::Empty;
    }
    Ok(response)
}

fn refusal(error: &std::io::Error) -> Refusal {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => NOT_FOUND,
        ErrorKind::PermissionDenied => Refusal {
            status: StatusCode::FORBIDDEN,
            reason: "FileForbidden",
            message: "the file may not be read",
        },
        _ => Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "FileUnreadable",
            message: "the file could not be read",
        },
    }
}

/// Codings that the client takes, best first.
fn acceptable(headers: &HeaderMap) -> Vec<Coding> {
    let mut offers = Coding::ALL.map(|coding| (coding.token(), coding)).to_vec();
    let mut codings = Vec::new();
    while let Some(best) = accept_encoding::choose(headers, &offers) {
        offers.retain(|(_, offer)| *offer != best);
        codings.push(best);
    }
    codings
}

/// 308 to the path with a slash. The doubled slashes that a client may begin with go, because a Location of
/// `//name/` would lead to another host.
fn redirect_to_folder(target: &PathAndQuery) -> Result<Response<Body>, Refusal> {
    let path = format!("/{}/", target.path().trim_start_matches('/'));
    let location = rewrite::with_query(path, target.query());
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let location = HeaderValue::try_from(location).map_err(|_| NOT_FOUND)?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

fn respond_file(file: FoundFile, method: &Method, headers: &HeaderMap) -> Response<Body> {
    let validators = Validators::of(&file);
    let outcome = conditional::evaluate(&validators, method, headers, file.length);
    let mut response = Response::new(Body::Empty);
    let answer = response.headers_mut();
    answer.insert(header::ETAG, validators.etag.clone());
    if let Some(modified) = &validators.last_modified {
        answer.insert(header::LAST_MODIFIED, modified.clone());
    }
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if file.has_codings {
        answer.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    let mut content_type = content_type(&file.name);
    let whole = |length| Piece::File { start: 0, length };
    let (status, pieces) = match outcome {
        Outcome::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        Outcome::PreconditionFailed => {
            *response.status_mut() = StatusCode::PRECONDITION_FAILED;
            return response;
        }
        Outcome::Unsatisfiable => {
            content_range(answer, format!("bytes */{}", file.length));
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return response;
        }
        Outcome::Parts(parts) if let [part] = parts[..] => {
            content_range(answer, range_text(part, file.length));
            (StatusCode::PARTIAL_CONTENT, vec![part_piece(part)])
        }
        // Clients differ in whether a coding covers the parts or what holds them.
        Outcome::Parts(parts) if file.coding.is_none() => {
            let boundary = boundary();
            let pieces = multipart(&parts, &boundary, &content_type, file.length);
            if let Ok(value) =
                HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}"))
            {
                content_type = value;
            }
            (StatusCode::PARTIAL_CONTENT, pieces)
        }
        Outcome::Parts(_) | Outcome::Whole => (StatusCode::OK, vec![whole(file.length)]),
    };
    let length: u64 = pieces.iter().map(Piece::length).sum();
    answer.insert(header::CONTENT_TYPE, content_type);
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(coding) = file.coding {
        answer.insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(coding.token()),
        );
    }
    *response.status_mut() = status;
    *response.body_mut() = body::of_pieces(file, pieces);
    response
}

/// Several parts in one body, RFC 9110 §14.6.
fn multipart(
    parts: &[Part],
    boundary: &str,
    content_type: &HeaderValue,
    length: u64,
) -> Vec<Piece> {
    let content_type = content_type.to_str().unwrap_or("application/octet-stream");
    let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
    for part in parts {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {}\r\n\r\n",
            range_text(*part, length)
        );
        pieces.push(Piece::Text(head.into()));
        pieces.push(part_piece(*part));
    }
    pieces.push(Piece::Text(format!("\r\n--{boundary}--\r\n").into()));
    pieces
}

/// What no file can hold by intent, since nobody can tell it beforehand.
fn boundary() -> String {
    format!("{:032x}", fastrand::u128(..))
}

fn part_piece(part: Part) -> Piece {
    Piece::File {
        start: part.start,
        length: part.length(),
    }
}

fn range_text(part: Part, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.start, part.end)
}

fn content_range(headers: &mut HeaderMap, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(header::CONTENT_RANGE, value);
    }
}

/// By the name's extension; text is UTF-8.
fn content_type(name: &str) -> HeaderValue {
    let guess = mime_guess::from_path(name).first_or_octet_stream();
    let text = guess.essence_str();
    let is_text = text.starts_with("text/")
        || matches!(
            text,
            "application/javascript" | "application/json" | "application/xml"
        );
    let charset = if is_text && guess.get_param("charset").is_none() {
        "; charset=utf-8"
    } else {
        ""
    };
    HeaderValue::try_from(format!("{guess}{charset}"))
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"))
}

/// Percent-encodes a file name for a link.
fn encode(name: &str) -> String {
    utf8_percent_encode(name, PATH).to_string()
}

#[cfg(test)]
mod tests;
