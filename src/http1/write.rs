//! Pure: writes heads. Nothing that is not already a valid token or value may be passed in.

/// Appends one head to a buffer.
#[derive(Debug)]
pub struct HeadWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> HeadWriter<'a> {
    /// Begins with `method SP target SP HTTP/1.1 CRLF`.
    pub fn request(out: &'a mut Vec<u8>, method: &[u8], target: &[u8]) -> Self {
        out.extend_from_slice(method);
        out.push(b' ');
        out.extend_from_slice(target);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        Self { out }
    }

    /// Begins with `HTTP/1.1 SP status SP reason CRLF`. The version is ours, not the backend's
    /// (RFC 9110 §2.5).
    pub fn response(out: &'a mut Vec<u8>, status: u16, reason: &[u8]) -> Self {
        debug_assert!((100..1000).contains(&status), "a status has three digits");
        let digit = |place: u16| b'0' + (status / place % 10) as u8;
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(&[digit(100), digit(10), digit(1), b' ']);
        out.extend_from_slice(reason);
        out.extend_from_slice(b"\r\n");
        Self { out }
    }

    /// Appends a field line.
    pub fn field(&mut self, name: &[u8], value: &[u8]) -> &mut Self {
        self.field_list(name, [value])
    }

    /// Appends a field line that is written out already, its end included: one copy in place of
    /// four.
    pub fn line(&mut self, line: &[u8]) -> &mut Self {
        debug_assert!(line.ends_with(b"\r\n"), "no line");
        self.out.extend_from_slice(line);
        self
    }

    /// Appends a field line whose value is a list: the members, with commas between.
    pub fn field_list<'v>(
        &mut self,
        name: &[u8],
        members: impl IntoIterator<Item = &'v [u8]>,
    ) -> &mut Self {
        self.out.extend_from_slice(name);
        let mut before: &[u8] = b": ";
        for member in members {
            debug_assert!(!member.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "it splits");
            self.out.extend_from_slice(before);
            self.out.extend_from_slice(member);
            before = b", ";
        }
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Appends a field line with a number.
    pub fn field_number(&mut self, name: &[u8], value: u64) -> &mut Self {
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        push_decimal(self.out, value);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Ends the head.
    pub fn end(self) {
        self.out.extend_from_slice(b"\r\n");
    }
}

/// The reason phrase for statuses that the balancer gives itself.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        // The phrase is optional (RFC 9112 §4); an empty one is better than a wrong one.
        _ => "",
    }
}

fn push_decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// `size` in hex and CRLF, written into `line`.
pub(super) fn chunk_size_line(size: usize, line: &mut [u8; 18]) -> &[u8] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    line[16..].copy_from_slice(b"\r\n");
    let (mut at, mut n) = (16, size);
    loop {
        at -= 1;
        line[at] = HEX[n % 16];
        n /= 16;
        if n == 0 {
            break;
        }
    }
    &line[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_read_back() {
        let mut out = Vec::new();
        let mut head = HeadWriter::response(&mut out, 503, b"Service Unavailable");
        head.line(b"Retry-After: 5\r\n").field_number(b"Content-Length", 0);
        head.field_list(b"X", [&b"a"[..], b"b"]);
        head.end();
        assert_eq!(
            out,
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nX: a, b\r\n\r\n"
        );
    }

    #[test]
    fn numbers() {
        for n in [0, 7, 10, 4096, u64::MAX] {
            let mut out = Vec::new();
            push_decimal(&mut out, n);
            assert_eq!(out, n.to_string().as_bytes());
        }
        for n in [0, 9, 16, 255, 65_536, usize::MAX] {
            assert_eq!(chunk_size_line(n, &mut [0; 18]), format!("{n:x}\r\n").as_bytes());
        }
    }
}
