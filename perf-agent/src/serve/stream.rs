//! A connection that waits for its reader only so long.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Bounds the time from the first byte of an answer that the kernel would not take at once, to the last.
///
/// Hyper bounds the time to send a request, and not the time to take an answer. A bound on each single write would not
/// do: a client that reads a byte now and then would hold the answer for ever.
pub(super) struct Patient {
    stream: TcpStream,
    limit: Duration,
    /// Set while an answer is held up.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    pub(super) fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, deadline: None }
    }

    fn check(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() && self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep(self.limit)));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read its answer",
            )));
        }
        written
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // Hyper flushes when it has nothing left to write.
        self.deadline = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    async fn pair() -> (Patient, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (Patient::new(stream, LIMIT), client)
    }

    #[tokio::test]
    async fn a_reader_that_dribbles_is_cut_in_time() {
        let (mut patient, mut client) = pair().await;
        let dribble = tokio::spawn(async move {
            let mut few = vec![0; 64 << 10];
            while client.read(&mut few).await.is_ok_and(|read| read > 0) {
                sleep(LIMIT / 10).await;
            }
        });
        let begin = Instant::now();
        let error = patient.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((LIMIT..LIMIT * 10).contains(&begin.elapsed()), "{:?}", begin.elapsed());
        drop(patient);
        dribble.await.unwrap();
    }

    #[tokio::test]
    async fn each_answer_has_its_own_time() {
        let (mut patient, mut client) = pair().await;
        let answer = vec![0; 8 << 20];
        let mut taken = vec![0; answer.len()];
        let begin = Instant::now();
        // Every answer is held up for a while, all of them together for longer than the limit.
        while begin.elapsed() < LIMIT * 2 {
            let late = async {
                sleep(LIMIT / 3).await;
                client.read_exact(&mut taken).await
            };
            let write = async {
                patient.write_all(&answer).await?;
                patient.flush().await
            };
            tokio::try_join!(write, late).unwrap();
        }
    }
}
