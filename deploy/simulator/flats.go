// Flat files: sparse copies, and folding one flat into another without changing its inode.
package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
)

const (
	ficlone  = 0x40049409 // ioctl_ficlone(2)
	seekData = 3          // lseek(2), SEEK_DATA and SEEK_HOLE
	seekHole = 4
)

// dataRanges calls f for each range of a sparse file that may hold other bytes than zeroes.
func dataRanges(f *os.File, do func(offset, length int64) error) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := f.Seek(off, seekData)
		if errors.Is(err, syscall.ENXIO) { // no data after off
			return nil
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if err := do(start, end-start); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// copyFlat makes dst a copy of src: a reflink where the file system has them, else a sparse copy.
func copyFlat(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, out.Fd(), ficlone, in.Fd()); e == 0 {
		return nil
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	return dataRanges(in, func(off, n int64) error {
		if _, err := in.Seek(off, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(off, io.SeekStart); err != nil {
			return err
		}
		_, err := io.CopyN(out, in, n) // copy_file_range(2) underneath
		return err
	})
}

// mergeFlat makes dst equal to src by writing only the blocks that differ.
func mergeFlat(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR, 0600)
	if err != nil {
		return err
	}
	defer out.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	same := func(off, n int64) error {
		for end := off + n; off < end; off += int64(len(a)) {
			k := end - off
			if k > int64(len(a)) {
				k = int64(len(a))
			}
			if _, err := io.ReadFull(io.NewSectionReader(in, off, k), a[:k]); err != nil {
				return err
			}
			if _, err := io.ReadFull(io.NewSectionReader(out, off, k), b[:k]); err != nil {
				return err
			}
			if !bytes.Equal(a[:k], b[:k]) {
				if _, err := out.WriteAt(a[:k], off); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := dataRanges(in, same); err != nil {
		return err
	}
	return dataRanges(out, same) // what is a hole in src may hold old bytes in dst
}
