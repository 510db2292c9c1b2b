//! The component servers: sockets, streams, and callbacks that find the stream waiting for them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::TcpListener,
    rc::Rc,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    net::TcpStream,
    runtime::Runtime,
    sync::oneshot,
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::component::{self, Reply, event};
use crate::endpoint::{Connection, Limits, Request, Response};

/// Keep-alive as that of Stepflow's component servers, so that a balancer that holds connections
/// for longer is seen to fail.
const LIMITS: Limits = Limits {
    body_bytes_max: 4 * 1024 * 1024,
    idle: Duration::from_secs(5),
    transfer: Duration::from_secs(30),
};
/// How long a stream waits for the answer to its question: long enough to paste a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two events, so that one sees them come one by one.
const PROGRESS_PAUSE: Duration = Duration::from_millis(300);
const PROGRESS_STEPS: u32 = 3;
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// One component server.
struct Server {
    instance: String,
    questions: Cell<u64>,
    waiting: RefCell<HashMap<String, oneshot::Sender<Value>>>,
}

/// Serves until `stopped`, or until whoever holds the other end is gone.
pub(super) fn run(
    runtime: &Runtime,
    listeners: Vec<(String, TcpListener)>,
    stopped: oneshot::Receiver<()>,
) {
    LocalSet::new().block_on(runtime, async {
        for (instance, listener) in listeners {
            spawn_local(async move {
                let error = serve(&instance, listener).await;
                warn!(instance, %error, "a component server of the demo ended");
            });
        }
        let _ = stopped.await;
    });
}

/// Returns only when the listener cannot be used at all.
async fn serve(instance: &str, listener: TcpListener) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let server = Rc::new(Server {
        instance: instance.to_owned(),
        questions: Cell::new(0),
        waiting: RefCell::default(),
    });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Rc::clone(&server);
                spawn_local(async move {
                    if let Err(error) = server.converse(stream).await {
                        debug!(instance = server.instance, %error, "a demo connection broke");
                    }
                });
            }
            Err(error) => {
                warn!(instance, %error, "a component server of the demo cannot accept");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

impl Server {
    async fn converse(&self, stream: TcpStream) -> io::Result<()> {
        let mut connection = Connection::new(stream, LIMITS);
        while let Some(request) = connection.next_request().await? {
            match component::reply(&self.instance, &request) {
                Reply::Whole(response) => self.send(&mut connection, &request, response).await?,
                Reply::Stream { id } => self.stream(&mut connection, &request, &id).await?,
                Reply::Callback { id, answer } => {
                    let response = self.take_answer(&id, answer);
                    self.send(&mut connection, &request, response).await?;
                }
            }
            if request.closes {
                break;
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        connection: &mut Connection,
        request: &Request,
        response: Response,
    ) -> io::Result<()> {
        let response = response.with("Stepflow-Instance-Id", self.instance.clone());
        connection.respond(request.method, &response, request.closes).await
    }

    fn take_answer(&self, id: &str, answer: Value) -> Response {
        let waiting = self.waiting.borrow_mut().remove(id);
        // A stream that is gone no longer waits, even if its question is still on the list.
        match waiting.map(|stream| stream.send(answer)) {
            Some(Ok(())) => component::callback_taken(),
            Some(Err(_)) | None => component::callback_unknown(&self.instance, id),
        }
    }

    /// A question to the client, its answer by way of another request, progress, the result.
    async fn stream(
        &self,
        connection: &mut Connection,
        request: &Request,
        id: &Value,
    ) -> io::Result<()> {
        let head = Response {
            content_type: "text/event-stream; charset=utf-8",
            ..Response::text(200, String::new())
        };
        let head = head.with("Stepflow-Instance-Id", self.instance.clone());
        connection.begin_stream(&head, request.closes).await?;
        let mut question = self.ask();
        let host = component::pastable_host(request);
        let wait_s = ANSWER_TIMEOUT.as_secs();
        let text = event::question(&self.instance, &question.id, &host, wait_s);
        connection.send_piece(text.as_bytes()).await?;
        let answered = tokio::select! {
            answered = timeout(ANSWER_TIMEOUT, &mut question.answer) => answered,
            () = connection.client_left() => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let last = match answered {
            Ok(Ok(answer)) => {
                for step in 1..=PROGRESS_STEPS {
                    let progress = event::progress(step, PROGRESS_STEPS);
                    connection.send_piece(progress.as_bytes()).await?;
                    sleep(PROGRESS_PAUSE).await;
                }
                event::result(id, &self.instance, &answer)
            }
            Ok(Err(_)) | Err(_) => event::gave_up(id, wait_s),
        };
        connection.send_piece(last.as_bytes()).await?;
        connection.end_stream().await
    }

    fn ask(&self) -> Question<'_> {
        let number = self.questions.get() + 1;
        self.questions.set(number);
        let id = format!("put-{number}");
        let (sender, answer) = oneshot::channel();
        self.waiting.borrow_mut().insert(id.clone(), sender);
        Question { server: self, id, answer }
    }
}

/// A question that waits for its answer, and is off the list when its stream ends.
struct Question<'a> {
    server: &'a Server,
    id: String,
    answer: oneshot::Receiver<Value>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.server.waiting.borrow_mut().remove(&self.id);
    }
}
