package wireguard

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// fileReader reads a unix socket, and keeps the newest file that came along
// (unix(7), SCM_RIGHTS); others before it are closed, and by the kernel those for
// which there is no room.
type fileReader struct {
	conn *net.UnixConn
	file *os.File
}

// Read implements io.Reader.
func (r *fileReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := r.conn.ReadMsgUnix(p, oob)
	r.keep(oob[:k])
	return n, err
}

func (r *fileReader) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			r.drop()
			r.file = os.NewFile(uintptr(fd), "(received)")
		}
	}
}

// take gives the file up to the caller; nil when none came since the last call.
func (r *fileReader) take() *os.File {
	f := r.file
	r.file = nil
	return f
}

// drop closes a file that nobody took.
func (r *fileReader) drop() {
	if f := r.take(); f != nil {
		_ = f.Close()
	}
}
