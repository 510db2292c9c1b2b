//! A reader of event streams, written from the WHATWG specification (HTML, §9.2.5 and §9.2.6)
//! sentence by sentence: it holds the whole stream, and knows nothing of pieces.

/// What a reader makes of a whole stream whose end has been reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What it dispatches, in order.
    pub events: Vec<Event>,
    /// The last event ID string of the event source, which the next request carries.
    pub last_event_id: String,
    /// The reconnection time, if the stream set one.
    pub retry_ms: Option<String>,
    /// The fields between empty lines, whatever they mean, names and values: what a reader holds
    /// that attaches a meaning to other fields than the specification does.
    pub blocks: Vec<Vec<(String, String)>>,
}

/// One dispatched event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its type: `message` if no other was said.
    pub kind: String,
    /// What it carries.
    pub data: String,
    /// The last event ID at that moment.
    pub last_event_id: String,
}

/// Reads a stream from its first octet to its last.
pub fn read(stream: &[u8]) -> Reading {
    // "Streams must be decoded using the UTF-8 decode algorithm", which strips one leading BOM.
    let text = String::from_utf8_lossy(stream);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    // What stands behind the last line end is no line: pending data is discarded at the end.
    lines.pop();

    let mut reading = Reading::default();
    let (mut data, mut kind, mut id) = (String::new(), String::new(), String::new());
    let mut block = Vec::new();
    for line in lines {
        if line.is_empty() {
            if !block.is_empty() {
                reading.blocks.push(std::mem::take(&mut block));
            }
            // "Set the last event ID string of the event source to the value of the last event ID
            // buffer. The buffer does not get reset."
            reading.last_event_id.clone_from(&id);
            let (said, carried) = (std::mem::take(&mut kind), std::mem::take(&mut data));
            // "If the data buffer is an empty string", nothing is dispatched.
            if let Some(carried) = carried.strip_suffix('\n') {
                reading.events.push(Event {
                    kind: if said.is_empty() { "message".to_owned() } else { said },
                    data: carried.to_owned(),
                    last_event_id: id.clone(),
                });
            }
            continue;
        }
        let (name, value) = match line.split_once(':') {
            Some(("", _)) => continue,
            Some((name, value)) => (name, value.strip_prefix(' ').unwrap_or(value)),
            None => (line, ""),
        };
        block.push((name.to_owned(), value.to_owned()));
        match name {
            "event" => value.clone_into(&mut kind),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut id),
            "retry" if !value.is_empty() && value.bytes().all(|octet| octet.is_ascii_digit()) => {
                reading.retry_ms = Some(value.to_owned());
            }
            _ => {}
        }
    }
    reading
}
