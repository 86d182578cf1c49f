/* nodedb_wal.h - v0.2 - a durable, ordered, crash-safe log in one file - public domain or MIT, as you prefer

1. WHAT IT IS FOR, AND NOT FOR
   A write-ahead log: a directory of files that holds numbered records in order. A record is durable when the call that
   commits it returns. From then on no crash loses it, and it is never handed out damaged. If the disk loses or changes
   it later, an error says so. One case cannot be told from a crash: the last groups of a log that was not closed, as
   nothing behind them shows that they had been acknowledged (section 3, rules 4 to 6).
   Records go to the disk in groups, one write for each group. The writes go past the page cache (O_DIRECT) and through
   io_uring where the system has them, else through pwrite and fdatasync. It needs Linux.
   Use it under a database, a queue, a state machine, a ledger.
   Do not use it for random access by key, for one log that several processes write, or to edit files in place.

2. QUICK START

        #define NODEDB_WAL_IMPLEMENTATION // in exactly one .c or .cpp file of the program
        #include <nodedb_wal.h>
        #include <stdio.h>
        static nodedb_wal_config config; // all zero: the defaults
        static nodedb_wal_reader_config reading;
        static nodedb_wal_record record;
        static nodedb_error err;
        static int fail(void) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        // Called for each record that is in the log, in order: rebuilds the state of the application.
        static nodedb_status apply(void *count, const nodedb_wal_record *r) {
            ++*(int *)count;
            printf("record %llu says %.*s\n", (unsigned long long)r->lsn, (int)r->payload_bytes,
                   (const char *)r->payload);
            return NODEDB_OK;
        }
        int main(void) {
            uint64_t lsn;
            int count = 0;
            nodedb_wal *wal;
            config.dir = reading.dir = "log";
            config.segment_bytes = 1 << 20; // 1 MiB is enough here; the default is 64 MiB (section 8)
            wal = nodedb_wal_open(&config, &err); // makes the log, or recovers what is there
            if (wal == NULL) return fail();
            if (nodedb_wal_replay(&reading, apply, &count, NULL, &err) != NODEDB_OK) return fail();
            record.type = NODEDB_WAL_TYPE_USER;
            record.payload = "hello";
            record.payload_bytes = 5;
            if (nodedb_wal_commit(wal, &record, 1, &lsn, &err) != NODEDB_OK) return fail();
            printf("%d records were there; \"hello\" is on the disk as record %llu\n", count, (unsigned long long)lsn);
            return nodedb_wal_close(wal, &err) == NODEDB_OK ? 0 : fail();
        }

   Start it twice: the second start prints the record of the first. Compile it with
   `cc -I. app.c -luring -lpthread` (-I names the header's folder), or without liburing with
   `cc -I. -DNODEDB_NO_LIBURING app.c -lpthread`. examples/wal.c is a store on the log, with a
   follower, in under 100 lines.

3. CONCEPTS
   Record      A type, a payload of up to 64 MiB, and three numbers that the log carries for the application: tenant,
               vshard, database.
   LSN         Log sequence number: 1, 2, 3 and so on, one for each record, without a gap. The log's own records (seals)
               have LSNs too. Readers do not hand those out, so an application sees gaps.
   Type        The application's types begin at NODEDB_WAL_TYPE_USER. Below are the well-known types. The log gives a
               meaning to three of them: transaction, tombstone, anchor. Put, delete, vector and checkpoint records mean
               what the application makes of them, and a noop is handed out like any other record. An application may
               add NODEDB_WAL_REQUIRED to a type: a reader that does not know the type then stops instead of skipping.
   Group       The records that go to the disk in one write. A group begins on a block of the device and is padded to
               whole blocks. So no block that holds an acknowledged record is written again, and a power cut in a later
               write cannot reach that record. Several groups may be in flight. They become durable in order.
   Durable     On stable storage. The durable LSN is the highest LSN up to which every record is durable; only records
               up to it are acknowledged.
   Watermark   The durable LSN at the time when a record was appended. Each record carries it, and so does the preamble
               of each segment.
   Segment     A file of 64 MiB (default), named by its first LSN. It is filled with zeros before it is used,
               so a commit changes no metadata of the file system. The next segment is prepared while the current one
               fills. EVERY OPENING OF A LOG FOR WRITING BEGINS A SEGMENT, also where the last one is nearly empty:
               blocks that a crash may have torn are not written again. A segment without a record is replaced at the
               next opening; all others stay until nodedb_wal_truncate_before.
   Epoch       The number of a use of a segment file. The checksums of records begin with log id, epoch and first LSN,
               so nothing that an earlier use left in a file is ever taken for a record.
   Seal        The last record of a log that was closed in order: a noop whose watermark covers all records before it.
   Checkpoint  A state on disk, made by the application, that holds the effect of every record up to and with an LSN.
               Then call nodedb_wal_truncate_before(wal, that LSN + 1), and replay from that LSN + 1. With several
               threads that commit, take an LSN up to which every record has been applied: commits return in any order.
               A lock around commit and apply is one way; a follower that applies all records (examples/wal.c) is
               another.
   Truncation  Removes whole segments from the oldest end. The file of a removed segment is kept as a spare, up to four
               of them, and used again for a later segment of the same size; after a change of segment_bytes the next
               opening deletes them.
   Recovery    What nodedb_wal_open does. It reads the preambles of all segments, syncs the last two, and reads their
               records, drops a torn tail, and begins a segment behind it. Two are enough: a third segment is begun only
               when all of the first is durable. Damage further back is found by replay or nodedb_wal_verify. Recovery
               may keep whole records that were never acknowledged: a crash came between the write and the answer.
   Reader      Reads forward, without a lock, in this process or another. It may hand out the newest records before they
               are acknowledged, as recovery may keep them. It ends with the segments that were there when it opened.
   Follower    A reader of the open log in the same process, which stops at the durable LSN and goes on when that moves.
   Transaction A record whose payload is records. After a crash all of them are there, or none. A reader hands it out as
               one record, and nodedb_wal_transaction_next walks through it.
   Tombstone   Says that everything of a collection with a lower LSN is dead. A collection is a tenant, and the record's
               database or what config.collection_of says. Replay in order needs nothing else: a reader hands the
               tombstone out, and the application drops what it has built of the collection. But the dead must stay dead
               when the segment with the tombstone has gone (truncated here, not restored there), and recovery need not
               build what it will drop. So the log keeps the newest durable tombstone of each collection in a file,
               "tombstones", which outlives the segments. Readers skip what lies below its entries. Followers do not:
               they hand out what happened. Copy that file along with segments. nodedb_wal_forget_tombstones when no
               segment, here or in an archive, is old enough to need them.
   Anchor      Says at what time its LSN was given out. nodedb_wal_lsn_at finds the LSN for a time, and a reader with
               that until_lsn stops behind it: recovery to a point in time. To go on from there, write what was read to
               a new log in another directory (config.first_lsn keeps the numbers); the old one stays as it is.

   THE END OF A LOG: TORN TAIL OR CORRUPTION. After a crash the last records may be unreadable for two reasons. A write
   was interrupted, and nobody had been told that its records are durable: that is a torn tail, and it is dropped. Or
   the records had been acknowledged, and the disk lost or changed them: that is corruption, and it must be reported. A
   checksum cannot tell one from the other. The watermarks can. Here the group of record 4 was still in flight when 5
   and 6 were appended, so 5 and 6 carry the watermark 3:

      block       0            1                  2                  3                  4
                  +------------+------------------+------------------+------------------+------------------+--
                  | preamble   | 1  2  3  padding | 4        padding | 5  6     padding | never written    |
                  +------------+------------------+------------------+------------------+------------------+--
      watermark     0            0  0  0            3                  3  3

      unreadable  what is readable behind it         verdict
      6           nothing                            no witness. If torn (rule 5), the log ends with 5
      4           5 and 6, watermark 3: below 4      no witness. If torn, the log ends with 3: 5 and 6 are dropped, as
                                                     they were not acknowledged before 4
      3           4, 5 and 6, watermark 3            corruption: 4, 5 and 6 are witnesses that 3 had been acknowledged

   Record N is expected at a place and cannot be read there. The rules, in order:
   1. The record before N is a seal: nothing behind it in this segment counts. Only the next segment can be a witness.
   2. A witness is a whole record behind N, in this segment or the next one, with a watermark of N or more; or the next
      segment's preamble with such a watermark. With a witness: corruption. A follower that finds N at or below the
      durable LSN of its log: corruption.
   3. The next segment begins with an earlier record than N, or behind a seal with another record than N, or another
      segment follows it: corruption. A third segment is begun only when all of the first is durable.
   4. Otherwise there is no witness. Behind a seal the log ends there, in order. Without one, N is in one of the last
      groups of a log that was not closed. Then the sectors decide: a disk writes each 512 bytes whole or not at all.
   5. a. In a file that was zero before, N would begin a group. Its first sector is
            zero, or zero but for one bit                torn: it never arrived
            a good header with LSN N                     rule b
            a good header with another LSN               torn
            anything else                                corruption: it was written whole, and has changed since
      b. In a file that was zero before, the first record of a group says how many of its sectors are all zero. Where
         more are zero, some never arrived: torn. Where no more are, all arrived, and something has changed since:
         corruption, unless it can only be padding. (65,535 or more zero sectors are not counted: such a group is torn.)
      c. A recycled file was not zero: old bytes may stand where a new sector did not arrive. Only a sector that holds a
         header of this segment is certainly new. So it is corruption in these cases alone, and everything else is torn:
         one changed bit explains the header; or the header is good and the payload is not, and the payload ends in the
         header's own sector, or one changed bit of it there, or of its checksum, explains it (payloads up to 4096
         bytes). From the first truncation on, files are recycled. config.no_recycling makes a and b hold in the
         segments that are begun from then on; each is then written twice, once with zeros.
   6. None of these: torn. The log ends before N, and whole records behind it, which have no watermark of N or more, are
      dropped with it.
   Padding holds no record. Where N stands whole in the next block, or the group that was read says that its rest was
   zero, a reader goes on behind changed padding and tells its logger.

   WHAT CANNOT BE TOLD. The last acknowledged groups of a log that was not closed have no witness. If the disk loses one
   of them as a whole (it reads as zeros, or as what a recycled file held before), or in a recycled file changes more
   than rule 5c recognizes, it looks like a torn tail and is dropped; its LSNs are given out again. Opening a log that
   was not closed tells the logger with which LSN it ends, if a record is left. An application that must know keeps the
   last acknowledged LSN elsewhere and compares it. A seal, or any later group, is a witness: close the log where you
   can.

   Before corruption is reported the place is read again, up to four times in 1.5 ms, as a writer may be filling it.
   Every call that meets it answers NODEDB_ERR_CORRUPT with file, offset and LSNs, and goes no further (section 7).

4. API BY TASK
   Open and close              nodedb_wal_open, nodedb_wal_close
   Write from many threads     nodedb_wal_commit blocks until the records are durable. Threads that commit at the same
                               time share a group.
   Write from one core,        nodedb_wal_append, _submit, _poll; poll(2) or epoll on nodedb_wal_fd; nodedb_wal_wait
   without waiting             where you want to wait; nodedb_wal_groups_in_flight. Poll often: each call prepares
                               256 KiB of the next segment, and where that is not ready in time an append writes it all.
   Ask where the log is        nodedb_wal_first_lsn, _durable_lsn, _last_lsn
   Transactions, tombstones,   nodedb_wal_append_transaction, _commit_transaction; nodedb_wal_append_tombstone,
   anchors                     _list_tombstones, _forget_tombstones; nodedb_wal_append_anchor
   Give space back             nodedb_wal_truncate_before(wal, the checkpoint's LSN + 1); nodedb_wal_drop_spares on a
                               full disk
   Change the key, archive     nodedb_wal_rollover: the next record begins a segment
   Look                        nodedb_wal_get_stats, nodedb_wal_describe
   Read                        nodedb_wal_reader_open, _next, _tell, _get_stats, _close
   Follow                      a reader with config.follow; nodedb_wal_await sleeps until there is more;
                               nodedb_wal_cancel_await wakes those that sleep
   Replay                      nodedb_wal_replay with a callback; nodedb_wal_replay_page for N records and a cursor
   Read what has a meaning     nodedb_wal_transaction_open, _next; nodedb_wal_lsn_at for a point in time
   Check                       nodedb_wal_verify; examples/wal_dump.c shows a log to a person

   A follower sleeps until its next record is durable, and ends when the log does. This program writes three records,
   which a thread follows:

        #define NODEDB_WAL_IMPLEMENTATION
        #include <nodedb_wal.h>
        #include <pthread.h>
        #include <stdio.h>
        static nodedb_wal *wal;
        static void *follow(void *count) {
            static nodedb_wal_reader_config config;
            nodedb_wal_reader *reader;
            nodedb_wal_record r;
            nodedb_wal_cursor next;
            nodedb_error err;
            nodedb_status status = NODEDB_OK;
            config.dir = "followed-log";
            config.follow = wal; // from_lsn: one more than the last record that was handled, to go on after a restart
            reader = nodedb_wal_reader_open(&config, &err);
            while (reader != NULL && status == NODEDB_OK) {
                status = nodedb_wal_reader_next(reader, &r, &err);
                if (status == NODEDB_OK) ++*(int *)count; // handle r here: its payload is valid until the next call
                if (status != NODEDB_ERR_AGAIN) continue;
                nodedb_wal_reader_tell(reader, &next);
                status = nodedb_wal_await(wal, next.lsn, UINT64_C(3600000000000), &err); // an hour
                if (status == NODEDB_ERR_TIMEOUT) status = NODEDB_OK;
            }
            if (status != NODEDB_ERR_CANCELLED) fprintf(stderr, "%s\n", err.message);
            nodedb_wal_reader_close(reader); // before the log is closed
            return NULL;
        }
        int main(void) {
            static nodedb_wal_config config;
            static nodedb_wal_record record;
            nodedb_error err;
            pthread_t thread;
            int i, count = 0;
            config.dir = "followed-log";
            config.segment_bytes = 1 << 20;
            wal = nodedb_wal_open(&config, &err);
            if (wal == NULL || pthread_create(&thread, NULL, follow, &count) != 0) return 1;
            record.type = NODEDB_WAL_TYPE_USER;
            for (i = 0; i < 3; i++)
                if (nodedb_wal_commit(wal, &record, 1, NULL, &err) != NODEDB_OK) fprintf(stderr, "%s\n", err.message);
            nodedb_wal_cancel_await(wal, true); // what is durable is still read; only the sleep ends
            pthread_join(thread, NULL);
            printf("followed %d records\n", count); // 3, and at the second start 6: it reads from the oldest one on
            return nodedb_wal_close(wal, &err) == NODEDB_OK && count >= 3 ? 0 : 1;
        }

   Truncation does not wait for readers. One that is still in a removed segment reads on for as long as its records are
   in the file. Then nodedb_wal_reader_next answers NODEDB_ERR_NOT_FOUND, with the LSN that it wanted in err.lsn, and
   never hands out a record of the file's next use. But a payload that it has handed out from a MAPPED segment may
   change under the application when the file is used again. So truncate below the record that the slowest reader is at
   (nodedb_wal_reader_tell), or read BUFFERED, where the payload is the reader's own copy.

5. THREADS
   Every function on a nodedb_wal may be called from any thread, but nodedb_wal_close: then no other call may be under
   way, and readers that follow the log must be closed. A mutex guards the log. nodedb_wal_commit and _wait write and
   sleep without it.
   Of the threads that commit at once, one leads: it closes the group and writes it with pwritev2(RWF_DSYNC), or with
   pwrite and fdatasync where the system refuses that. The others sleep until the group is durable. A first leader may
   wait for threads that have just been served, no longer than a write takes and 500 us at most, if such waits paid
   before. One of the threads that wait stays awake for as long as one and a half writes take, 500 us at most, and
   yields to any other thread.
   What nodedb_wal_submit sends goes through io_uring, and nodedb_wal_poll takes notice when it is done.
   Several threads call a nodedb_io of the caller's at the same time.
   A nodedb_wal_reader belongs to one thread at a time. Replay calls back on the calling thread only.
   After a fork() the child must not use an open log or reader. The log blocks no signals and installs no handlers.

6. MEMORY
   Writer      groups * group_bytes (8 * 1 MiB) of group buffers, allocated and touched when the log opens, 256 KiB of
               zeros and some 20 KiB besides: 8.6 MiB resident by default. A small program sets groups = 2 and
               group_bytes = 64 KiB, and a writer then holds half a MiB; one group is in flight at a time. A record
               larger than group_bytes has a buffer of its own until it is durable. A tombstone takes 24 bytes.
   Opening     Reads the last two segments as a reader does, streamed or buffered: up to 6 MiB until it is done.
   Reader      MAPPED: one segment is mapped (with threads: at most threads + 1). BUFFERED: a buffer of 1 MiB, or 64 KiB
               in a follower, which grows to the largest record. STREAMED: a ring of 8 chunks of 512 KiB that the device
               fills ahead through O_DIRECT and an io_uring, and 2 MiB in front of it for the beginning of a record that
               crosses the ring's end; a larger beginning goes through the buffer. Streaming leaves the page cache as it
               is, and may read up to 4 MiB behind the last record. With a cipher, a buffer for the plain text that
               grows to one and a half times the largest record. A reader that does not follow loads the tombstones.
   After opening nothing else is allocated but a reader's buffers at their first use, and the lists of segments and of
   tombstones as they grow. The config's allocator is called from the threads that call the log or the reader.

7. ERRORS
   Each function names its statuses where it is declared; nodedb_error.message is a sentence for a person.
   A failed write or sync is final. Every waiter and every later call gets that error until the log is closed and opened
   again, which reads back what the disk has. A retry would lie: after a failed sync the kernel has dropped the data.
   A full disk is not such a failure, as space is taken before it is needed:
   - Where there is no room for a whole segment, a small one is begun: what the record needs, and at least 256 KiB. So a
     nearly full disk still takes records. A file of 1 MiB that the application keeps, and deletes when the disk is
     full, makes enough room for the records that free space. Whole segments come back once there is room: after at most
     16 small ones, or when the log is truncated.
   - Where there is no room for a small segment, nodedb_wal_append answers NODEDB_ERR_DISK_FULL. The record has no LSN,
     and writing goes on when there is room.
   - The same holds where the file of tombstones finds no room when a segment is begun or truncated, and for
     NODEDB_ERR_KEY, when the cipher cannot seal a record.
   NODEDB_ERR_CORRUPT: the disk, or a program, changed what had been written. The log does not choose what to give up:
   it does not open, and no segment has been changed. What to do is the operator's decision:
   1. Copy the directory before anything else, and look at the disk. A copy of the log elsewhere may be whole.
   2. nodedb_wal_verify and examples/wal_dump.c show the place: file, offset, err.lsn.
   3. A reader with until_lsn = err.lsn - 1 reads all before it. A reader with from_lsn = the first LSN of a later
      segment, which its name tells, reads what stands behind. Between them records are lost.
   4. Write what is to be kept to a new log in another directory; config.first_lsn keeps the numbers.

8. LIMITS
   Payload                  64 MiB, NODEDB_WAL_MAX_PAYLOAD_BYTES (encrypted: 16 bytes less)
   Segment                  at least 64 KiB, 64 MiB by default. A larger record makes its segment larger; a nearly full
                            disk makes segments smaller (section 7)
   Segments                 65,536 at a time; encrypted logs 2^32 in their life
   Disk space               each start that commits leaves a segment of segment_bytes until it is truncated: ten starts
                            of a program with the defaults take 640 MiB. A small program sets segment_bytes to 1 MiB.
                            Up to four truncated segments stay as spares; nodedb_wal_drop_spares frees them
   Groups in flight         2 to 16 buffers, so 1 to 15 groups; group_bytes at most 64 MiB
   Tombstones               65,536, one for each collection
   Transaction              65,536 records and 64 MiB in all
   Directory name           3,800 bytes
   Reading threads          16

9. ON DISK
   Everything is little-endian. Files of a log's directory:
      <first LSN, 20 digits>.wal   a segment
      LOCK                         locked by the writer (flock), empty
      tombstones                   the newest durable tombstone of each collection
      spare-N.wal                  a prepared or recycled segment
      dead-N.wal                   epoch N was used by a segment that recovery removed; goes when a segment is begun
      prepare.tmp, tombstones.tmp  being prepared; deleted when the log is opened

   Preamble, in the first block of a segment, padded with zeros to the block:
       offset bytes
            0     4  magic "WALP"
            4     2  format version, 1
            6     2  bit 0: the file was used before, and what is not written yet is not zero
            8     8  log id, random, the same in all segments
           16     8  epoch, a new one for each use of a segment
           24     8  first LSN
           32     8  size of the segment, bytes
           40     4  block size, bytes: groups start at multiples of it
           44     4  key id, 0: the segment is not encrypted
           48     8  watermark: every LSN up to this one was durable when the segment was begun
           56     4  tombstones in their file when the segment was begun
           60     4  CRC-32C of bytes 0 to 59
           64    16  key check, of an encrypted segment: the tag over an empty text with bytes 0 to 59 as header. Nonce:
                     the epoch's low 32 bits, then a hash of bytes 0 to 59 (nodedb_wal__sealing_of_preamble), bit 63 set
   Groups follow, each from a multiple of the block size: records one behind the other, then zeros. Record:
            0     4  magic 0x53594E57, little-endian like all: the bytes "WNYS"
            4     2  format version, 1
            6     2  type; bit 15: required; bit 14: encrypted, in all records of an encrypted segment and only there
            8     8  LSN
           16     8  watermark: every LSN up to this one was durable when the record was appended
           24     4  tenant
           28     4  vshard
           32     4  payload bytes as they are stored, at most 64 MiB
           36     4  bit 0: seal, the segment's last record (nodedb_wal_close, nodedb_wal_rollover). In the first record
                     of a group: bits 1 to 15 blocks of the group, bits 16 to 31 sectors of it, of 512 bytes, that are
                     all zero (65,535: that many or more)
           40     8  database
           48     8  epoch of the segment
           56     4  CRC-32C of preamble bytes 8 to 31, then record bytes 0 to 55
           60     4  CRC-32C of preamble bytes 8 to 31, then the payload, then record bytes 56 to 59
           64     n  payload, then zeros up to a multiple of 8
   In an encrypted segment the stored payload is the text and a tag of 16 bytes. The tag covers, as header, preamble
   bytes 0 to 59 and record bytes 0 to 59 (of bytes 36 to 39 bit 0 alone, 56 to 59 as zeros). Nonce: the epoch's low 32
   bits, then the LSN. Checksums cover what is stored, so they need no key.
   Payload of a transaction (type 50), which is not empty and ends with its last record's zeros:
            0     4  number of records
            4     4  0
            8        the records one behind the other, each:
                     0  2  type; bit 15: required        12  4  payload bytes
                     2  2  0                             16  8  database
                     4  4  tenant                        24  n  payload, then zeros up to a multiple of 8
                     8  4  vshard
   An anchor's payload (type 102) is 8 bytes: nanoseconds since 1970. A tombstone (type 101) needs no payload.
   File "tombstones". It is written as tombstones.tmp, synced and renamed when it misses a durable tombstone: before a
   segment is begun, before one is removed, and when the log is closed.
            0     4  magic "WALT"
            4     2  format version, 1
            6     2  0
            8     8  log id
           16     8  covered LSN: every tombstone up to this one, and not forgotten, is in the file
           24     4  number of tombstones, n
           28     4  0
           32  24*n  tombstones, ascending by LSN, each: LSN (8 bytes), collection (8), tenant (4), 0 (4)
      32+24*n     4  CRC-32C of all before

   ENCRYPTION AT REST. config.cipher holds three functions around an authenticated cipher, AES-256-GCM or
   ChaCha20-Poly1305 of a crypto library, and the keys. The log seals each record as it is appended; a reader with the
   same keys opens it. Each segment names its key, so a new key counts from the next segment on: nodedb_wal_rollover
   begins it. The old key is needed until what it sealed is truncated. A log that began in clear goes on encrypted; a
   log that is encrypted stays so.
   With OpenSSL, `seal` is these calls. k is the key for s->key_id and s->log_id; where a call fails, answer KEY:
      EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), NULL, k, s->nonce)
      EVP_EncryptUpdate(c, NULL, &n, s->header, (int)s->header_bytes)
      EVP_EncryptUpdate(c, text, &n, text, (int)bytes)
      EVP_EncryptFinal_ex(c, tag, &n)
      EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, NODEDB_WAL_TAG_BYTES, tag)
   `open` is the same with EVP_Decrypt..., from text to plain, and EVP_CTRL_AEAD_SET_TAG with (void *)tag before the
   Final. Where that Final fails, it returns NODEDB_ERR_CORRUPT.
      Kept secret    payloads. In clear: types, sizes, LSNs, tenants, vshards, databases, key ids, the number of
                     records, and what was written before the log was encrypted, also in recycled segments.
      Noticed        a wrong or unknown key, when a segment is opened (KEY). Any change to a record (but for the size of
                     its group) or to a preamble; records or segments moved, doubled, left out in between or of another
                     log; a clear segment behind an encrypted one (CORRUPT or KEY). All this even where somebody made
                     every checksum fit. Without a key, checksums still tell torn tails and rot.
      Not noticed    by the log alone: the newest or oldest segments removed; an old copy of the directory put back; a
                     clear log put in its place; a change to the file of tombstones, which can hide records of segments
                     but not alter them. Keep the last LSN elsewhere if that matters.
      The keys       One key belongs to one log: derive it from a master key and log_id, which the cipher is told for
                     that. Where an old copy of a directory is used again, go on with a new key. The nonces that the
                     lost part had used would come again, and with GCM two texts under one nonce betray both.
      Dump, ship     keep_encrypted hands records out as they are stored, without a key. nodedb_wal_verify without a
                     cipher judges by the checksums.

10. BUILDING
   Order       Include this header before any system header, or compile with -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64. What
               is missing stops the compiler with a sentence. Any set of nodedb_*.h of one release goes together.
   Language    C99 and newer, C++11 and newer, gcc and clang. The implementation may stand in a .c or a .cpp file, in
               exactly one, where NODEDB_WAL_IMPLEMENTATION is defined before the header is included.
   Linking     -luring, unless liburing.h is not found or NODEDB_NO_LIBURING is defined; a found liburing must be
               linked. -lpthread, where the C library is older than glibc 2.34. Not -lm. -latomic where the CPU has no
               64-bit atomic operations of its own (MIPS32, PowerPC32, old Arm: __atomic_load_8 is missing).
   Includes    Include the system's headers that you use. Which of them the implementation includes may change.
   Macros      NODEDB_WAL_IMPLEMENTATION   compile the code here
               NODEDB_WAL_STATIC           with it: every function is static, private to this file
               NODEDB_WAL_API              what stands before each function, in place of `extern`
               NODEDB_NO_LIBURING          leave io_uring out, for all nodedb_*.h
               NODEDB_COMMON_TOOLS         declare the tools of the common blocks (checksum, byte order, errors) as well
               NODEDB_VERSION_NUMBER       is defined: 200 is 0.2.0

11. DEPARTURES
   From the usual design of a write-ahead log, each with its reason. The ratios were measured with
   `./build.sh bench wal` on two cores of a virtual machine when the change was made; section 12 has today's rates.
   1. A log that cuts itself off at the first bad checksum drops acknowledged records where the disk is at fault. Here
      every record carries a watermark, and corruption is reported (section 3). It costs 8 bytes a record.
   2. The last block is never written again to fill it. Each group is padded to the block: that costs space and no time,
      as the disk writes whole blocks anyway. A power cut during a rewrite would lose what had been acknowledged there.
   3. A segment is filled with zeros before it is used, or recycled. A file that is only allocated, or that
      grows, commits file-system metadata with each commit: about half the commits per second.
   4. There is no log-writer thread. Committers lead groups themselves. When the ring's completions ran in the thread
      that submitted, 64 threads on two cores made a third as many commits a second, and 8 threads a third as well. A
      single thread is as fast either way.
   5. One of the committers that wait stays awake. A processor that went to sleep during a write needs half as long
      again to wake up: with 8 threads 1.25 times the commits, the median of five alternating pairs.
   6. A failed sync is never tried again (section 7).
   7. A log that is not in the page cache is read past it, through O_DIRECT and io_uring, at the device's rate; mapping
      it would read in the same order, but wait for each page fault and push other data out of the cache.
   8. Three checksums run side by side: 18 GB/s instead of 7.6.

12. MEASURED
   With `./build.sh bench wal --quick`, on two cores of a virtual machine whose disk others used as well. Each ratio is
   the median of alternating rounds against the limit of the same run; the rates vary with the disk.
      one thread, 128-byte records      0.91 of the rate of bare 4 KiB writes through io_uring with RWF_DSYNC
      8 threads                         23,000 commits/s, 2.5 times RocksDB
      64 threads                        90,000 commits/s, 4.0 times RocksDB
      append, submit, poll, one thread  5,000,000 durable records/s of 128 bytes
      replay, not in the page cache     1.7 GB/s of records, 0.91 of O_DIRECT reads with 8 in flight
      replay, in the page cache         6.7 GB/s of records
   Memory and disk space (sections 6 and 8): a program that opens a log and commits one record, /proc/self/statm and ls.

13. LICENCE
   Public domain (Unlicense) or MIT, as you prefer; both texts stand at the end of the file. */

/* ===================================================================================================================
 * BEGIN NODEDB BASE BLOCK: statuses, errors, memory, sentences, time. The same words in every nodedb_*.h, behind one
 * guard, so that any set of them compiles together; `./build.sh sync` copies it from nodedb_wal.h.
 * ================================================================================================================ */
#ifndef NODEDB_VERSION
#define NODEDB_VERSION "0.2.0"
#define NODEDB_VERSION_NUMBER 200 /* major * 10000 + minor * 100 + patch */

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* O_DIRECT, CPU affinity, madvise: must be seen before the first system header */
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* files over 2 GiB on 32-bit systems */
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NODEDB_CACHE_LINE_BYTES 64       /* what two threads must not share; 128 would also cover paired prefetch */
#define NODEDB_ERROR_MESSAGE_BYTES 256   /* longest sentence in nodedb_error, its final zero included */

/* What a call answers. Zero is success; every other value is explained by the nodedb_error that the caller passed. */
typedef enum nodedb_status {
    NODEDB_OK = 0,
    NODEDB_ERR_INVALID,     /* an argument is wrong: nothing was done */
    NODEDB_ERR_STATE,       /* the object is not in a state that allows this call (closed, failed, degraded ...) */
    NODEDB_ERR_NO_MEMORY,   /* the allocator refused */
    NODEDB_ERR_LIMIT,       /* a limit with a name would be passed: a budget, a table, a payload size */
    NODEDB_ERR_AGAIN,       /* not now: a bounded queue is full, or there is nothing to do yet; try later */
    NODEDB_ERR_NOT_FOUND,   /* no such record, file, engine, handle or id */
    NODEDB_ERR_EXISTS,      /* it is there already */
    NODEDB_ERR_LOCKED,      /* another process or object owns it */
    NODEDB_ERR_IO,          /* the system refused a read, write, sync or map; see sys_errno */
    NODEDB_ERR_DISK_FULL,   /* no space left on the device, or quota used up; goes away when there is room */
    NODEDB_ERR_CORRUPT,     /* stored data is not what was written: see offset and lsn */
    NODEDB_ERR_UNSUPPORTED, /* this system, file system or build cannot do it */
    NODEDB_ERR_FAULT,       /* a task panicked or faulted and was abandoned */
    NODEDB_ERR_DEGRADED,    /* refused at once, because of earlier faults */
    NODEDB_ERR_TIMEOUT,     /* the deadline passed */
    NODEDB_ERR_CANCELLED,   /* the caller, or a stop, asked for it */
    NODEDB_ERR_KEY          /* an encryption key is missing or does not fit */
} nodedb_status;

/* Why a call failed, for a program and for a person. The caller owns it, passes it or NULL; it is written only on
 * failure. `message` is one sentence: what failed, on which path, where. `offset` and `lsn` are 0 where they mean
 * nothing; `sys_errno` is the system's errno or 0. */
typedef struct nodedb_error {
    nodedb_status status;
    int sys_errno;
    uint64_t offset; /* bytes from the start of the file that the message names */
    uint64_t lsn;
    char message[NODEDB_ERROR_MESSAGE_BYTES];
} nodedb_error;

/* Where memory comes from. Zeroed: posix_memalign and free. `alloc` returns `bytes` bytes aligned to `align` (a power
 * of two, at least sizeof(void *)) or NULL; `release` gets the same `bytes` back. Called from the threads that the
 * header's manual names. */
typedef struct nodedb_allocator {
    void *(*alloc)(void *ctx, size_t bytes, size_t align);
    void (*release)(void *ctx, void *memory, size_t bytes);
    void *ctx;
} nodedb_allocator;

typedef enum nodedb_log_level { NODEDB_LOG_INFO = 0, NODEDB_LOG_WARNING, NODEDB_LOG_ERROR } nodedb_log_level;
/* Where sentences for a person go (what fell back and why, what was dropped). Zeroed: nowhere. */
typedef struct nodedb_logger {
    void (*write)(void *ctx, nodedb_log_level level, const char *sentence);
    void *ctx;
} nodedb_logger;

/* The clock. Zeroed: CLOCK_MONOTONIC. Nanoseconds that never go back; tests pass a virtual one. */
typedef struct nodedb_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
} nodedb_clock;

/* The name of a status as a sentence; never NULL. Any thread. */
static inline const char *nodedb_status_text(nodedb_status status) {
    static const char *const texts[] = {
        "success", "an argument is wrong", "the object's state does not allow this call", "out of memory",
        "a limit would be passed", "not now, try again", "not found", "exists already", "locked by another",
        "input or output failed", "no space left on the device", "stored data is damaged", "not supported here",
        "the task faulted and was abandoned", "refused, degraded after repeated faults", "the deadline passed",
        "cancelled", "an encryption key is missing or does not fit"};
    return (size_t)status < sizeof texts / sizeof texts[0] ? texts[status] : "unknown status";
}
#elif NODEDB_VERSION_NUMBER != 200
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS. A program that defines NODEDB_COMMON_TOOLS before it includes a header may use what has one underscore here
 * and in the storage block. What has two is private.
 *     nodedb_fail, nodedb_io_status, nodedb_say    fill an error; the status of an errno; tell a logger
 *     nodedb_now_ns                                the clock of a config; NULL: CLOCK_MONOTONIC
 *     nodedb_mix64                                 a mixer for seeds and hashes; no secret */
#if !defined(NODEDB_BASE_INTERNALS) &&                                                                               \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) || defined(NODEDB_TPC_IMPLEMENTATION) || \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_PREFETCH_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_BASE_INTERNALS 1
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "include nodedb_*.h before any system header, or compile with -D_GNU_SOURCE"
#endif

/* ThreadSanitizer does not know fences: where an argument stands on one, another way is taken under it. */
#if defined(__SANITIZE_THREAD__)
#define NODEDB__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NODEDB__TSAN 1
#endif
#endif
#define nodedb__load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define nodedb__load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define nodedb__store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define nodedb__store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define nodedb__add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define nodedb__cas(p, expected, v) \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* Fills `err` (if there is one) and returns `status`, so that `return nodedb_fail(...)` reads as one step. */
__attribute__((format(printf, 4, 5))) static inline nodedb_status
nodedb_fail(nodedb_error *err, nodedb_status status, int sys_errno, const char *format, ...) {
    char reason[96] = "unknown error";
    const char *why = reason;
    va_list args;
    int used;
    if (err == NULL) return status;
    memset(err, 0, sizeof *err);
    err->status = status, err->sys_errno = sys_errno;
    va_start(args, format);
    used = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (sys_errno == 0 || used < 0 || (size_t)used + 4 >= sizeof err->message) return status;
#if defined(__GLIBC__)
    why = strerror_r(sys_errno, reason, sizeof reason);
#else
    (void)strerror_r(sys_errno, reason, sizeof reason);
#endif
    (void)snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", why);
    return status;
}

__attribute__((format(printf, 3, 4))) static inline void
nodedb_say(const nodedb_logger *logger, nodedb_log_level level, const char *format, ...) {
    char sentence[NODEDB_ERROR_MESSAGE_BYTES * 2];
    va_list args;
    if (logger == NULL || logger->write == NULL) return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    logger->write(logger->ctx, level, sentence);
}

static inline void *nodedb__alloc(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = NULL;
    if (bytes == 0) bytes = 1;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (allocator != NULL && allocator->alloc != NULL) return allocator->alloc(allocator->ctx, bytes, align);
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}
static inline void *nodedb__alloc_zero(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = nodedb__alloc(allocator, bytes, align);
    return memory != NULL ? memset(memory, 0, bytes) : NULL;
}
static inline void nodedb__release(const nodedb_allocator *allocator, void *memory, size_t bytes) {
    if (memory == NULL) return;
    if (allocator == NULL || allocator->release == NULL) free(memory);
    else allocator->release(allocator->ctx, memory, bytes == 0 ? 1 : bytes);
}

static inline uint64_t nodedb_now_ns(const nodedb_clock *clock) {
    struct timespec t;
    if (clock != NULL && clock->now_ns != NULL) return clock->now_ns(clock->ctx);
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* A small mixer for seeds and hashes: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t nodedb_mix64(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* A system call that a signal may cut off: again, until it was not. */
#define nodedb__retry(result, call) do (result) = (call); while ((result) < 0 && errno == EINTR)
/* The status that an errno means. */
static inline nodedb_status nodedb_io_status(int error) {
    if (error == ENOSPC || error == EDQUOT) return NODEDB_ERR_DISK_FULL;
    return error == ENOMEM ? NODEDB_ERR_NO_MEMORY : NODEDB_ERR_IO;
}
#endif
/* END NODEDB BASE BLOCK =========================================================================================== */

/* ===================================================================================================================
 * BEGIN NODEDB STORAGE BLOCK: files, checksums, byte order. The same words in the headers that store: nodedb_wal.h,
 * which has the master, nodedb_mem.h and nodedb_vamana.h.
 * ================================================================================================================ */
#ifndef NODEDB_STORAGE_BLOCK
#define NODEDB_STORAGE_BLOCK 1

/* The file system. Zeroed: the system's own. Tests put a simulated disk here and fail every call in turn. Each function
 * returns a value >= 0, or -errno; a read or write may be short, as in POSIX. `flags` are those of open(2); `sync`
 * makes the data of a file, or the entries of a directory, durable; `allocate` makes space exist, so that writing into
 * it cannot fail for want of room; `list` calls `visit` for each entry but "." and "..", until it returns nonzero;
 * `lock` takes an exclusive lock that dies with the descriptor, or returns -EWOULDBLOCK at once. */
typedef struct nodedb_io {
    int (*open)(void *ctx, const char *path, int flags, int mode);
    int (*close)(void *ctx, int fd);
    int64_t (*pread)(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset);
    int64_t (*pwrite)(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset);
    int (*sync)(void *ctx, int fd);
    int (*allocate)(void *ctx, int fd, uint64_t offset, uint64_t bytes);
    int (*truncate)(void *ctx, int fd, uint64_t bytes);
    int64_t (*size)(void *ctx, int fd);
    int (*rename)(void *ctx, const char *from, const char *to);
    int (*unlink)(void *ctx, const char *path);
    int (*make_dir)(void *ctx, const char *path, int mode);
    int (*list)(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name), void *visitor);
    int (*lock)(void *ctx, int fd);
    void *ctx;
} nodedb_io;

#elif NODEDB_STORAGE_BLOCK != 1
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS, with NODEDB_COMMON_TOOLS defined:
 *     nodedb_put_u16, _u32, _u64, nodedb_get_u16, _u32, _u64    little-endian, at any address
 *     nodedb_crc32c                                             the checksum of all our formats */
#if !defined(NODEDB_STORAGE_INTERNALS) &&                                                                              \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) ||                                       \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_STORAGE_INTERNALS 1
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* A compiler that stops here had a 32-bit system's headers included before ours, without -D_FILE_OFFSET_BITS=64: files
 * over 2 GiB would be written at wrong offsets. */
typedef char nodedb__off_t_has_8_bytes[sizeof(off_t) == 8 ? 1 : -1];

/* Little-endian on disk, whatever the machine. */
static inline void nodedb_put_u16(void *at, uint16_t v) {
    unsigned char *p = (unsigned char *)at;
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}
static inline void nodedb_put_u32(void *at, uint32_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb_put_u16(p, (uint16_t)v);
    nodedb_put_u16(p + 2, (uint16_t)(v >> 16));
}
static inline void nodedb_put_u64(void *at, uint64_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb_put_u32(p, (uint32_t)v);
    nodedb_put_u32(p + 4, (uint32_t)(v >> 32));
}
static inline uint16_t nodedb_get_u16(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}
static inline uint32_t nodedb_get_u32(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb_get_u16(p) | (uint32_t)nodedb_get_u16(p + 2) << 16;
}
static inline uint64_t nodedb_get_u64(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb_get_u32(p) | (uint64_t)nodedb_get_u32(p + 4) << 32;
}

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected, polynomial 0x82F63B78. `crc` is 0 to begin with, or the
 * value of the bytes before these. The CPU's own instruction where it has one, asked at run time; else four bits a
 * step from a table of 16. */
static inline uint32_t nodedb__crc32c_plain(uint32_t crc, const unsigned char *p, size_t bytes) {
    static const uint32_t step[16] = {
        0x00000000u, 0x105EC76Fu, 0x20BD8EDEu, 0x30E349B1u, 0x417B1DBCu, 0x5125DAD3u, 0x61C69362u, 0x7198540Du,
        0x82F63B78u, 0x92A8FC17u, 0xA24BB5A6u, 0xB21572C9u, 0xC38D26C4u, 0xD3D3E1ABu, 0xE330A81Au, 0xF36E6F75u};
    while (bytes-- > 0) {
        crc ^= *p++;
        crc = crc >> 4 ^ step[crc & 15];
        crc = crc >> 4 ^ step[crc & 15];
    }
    return crc;
}
#if defined(__x86_64__)
/* The instruction has a latency of three cycles and can begin every cycle, so three parts are summed side by side, and
 * joined: a sum is moved over n bytes by a carry-less product with x^(8n-33) mod P and one more crc32 (Gopal et al.,
 * "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel, 2011). 7.6 GB/s become 18. */
#define NODEDB__CRC_PART_BYTES 256
typedef long long nodedb__crc_pair __attribute__((vector_size(16)));
__attribute__((target("sse4.2,pclmul"))) static inline uint32_t nodedb__crc32c_cpu(uint32_t crc, const unsigned char *p,
                                                                                   size_t bytes) {
    const nodedb__crc_pair over = {0xDD7E3B0C, 0xB9E02B86}; /* x^(8*512-33), x^(8*256-33) */
    uint64_t a = crc, b, c, word;
    size_t i;
    for (; bytes >= 3 * NODEDB__CRC_PART_BYTES; bytes -= 3 * NODEDB__CRC_PART_BYTES) {
        nodedb__crc_pair sums, moved;
        for (i = 0, b = c = 0; i < NODEDB__CRC_PART_BYTES; i += 8, p += 8) {
            memcpy(&word, p, 8), a = __builtin_ia32_crc32di(a, word);
            memcpy(&word, p + NODEDB__CRC_PART_BYTES, 8), b = __builtin_ia32_crc32di(b, word);
            memcpy(&word, p + 2 * NODEDB__CRC_PART_BYTES, 8), c = __builtin_ia32_crc32di(c, word);
        }
        p += 2 * NODEDB__CRC_PART_BYTES;
        sums[0] = (long long)a, sums[1] = (long long)b;
        moved = __builtin_ia32_pclmulqdq128(sums, over, 0x00) ^ __builtin_ia32_pclmulqdq128(sums, over, 0x11);
        a = __builtin_ia32_crc32di(0, (uint64_t)moved[0]) ^ c;
    }
    for (; bytes >= 8; bytes -= 8, p += 8) memcpy(&word, p, 8), a = __builtin_ia32_crc32di(a, word);
    for (crc = (uint32_t)a; bytes > 0; bytes--) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#define nodedb__crc32c_cpu_present() (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
static inline uint32_t nodedb__crc32c_cpu(uint32_t crc, const unsigned char *p, size_t bytes) {
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word = nodedb_get_u64(p);
        __asm__("crc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    }
    for (; bytes > 0; bytes--) __asm__("crc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)*p++));
    return crc;
}
#define nodedb__crc32c_cpu_present() 1
#else
#define nodedb__crc32c_cpu nodedb__crc32c_plain
#define nodedb__crc32c_cpu_present() 0
#endif
static inline uint32_t nodedb_crc32c(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    crc = ~crc;
    crc = nodedb__crc32c_cpu_present() ? nodedb__crc32c_cpu(crc, p, bytes) : nodedb__crc32c_plain(crc, p, bytes);
    return ~crc;
}

/* The system's file calls behind nodedb_io: the same, with EINTR retried and -errno returned. */
static inline int nodedb__posix_open(void *ctx, const char *path, int flags, int mode) {
    int fd;
    (void)ctx;
    nodedb__retry(fd, open(path, flags | O_CLOEXEC, mode));
    return fd < 0 ? -errno : fd;
}
static inline int nodedb__posix_close(void *ctx, int fd) {
    (void)ctx;
    return close(fd) != 0 && errno != EINTR ? -errno : 0;
}
static inline int64_t nodedb__posix_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    (void)ctx;
    nodedb__retry(n, pread(fd, buffer, bytes, (off_t)offset));
    return n < 0 ? -errno : (int64_t)n;
}
static inline int64_t nodedb__posix_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    (void)ctx;
    nodedb__retry(n, pwrite(fd, buffer, bytes, (off_t)offset));
    return n < 0 ? -errno : (int64_t)n;
}
static inline int nodedb__posix_sync(void *ctx, int fd) {
    (void)ctx;
    return fdatasync(fd) != 0 ? -errno : 0; /* never retried: after a failure the kernel has dropped the pages */
}
static inline int nodedb__posix_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    int error;
    (void)ctx;
    do error = posix_fallocate(fd, (off_t)offset, (off_t)bytes);
    while (error == EINTR);
    return -error;
}
static inline int nodedb__posix_truncate(void *ctx, int fd, uint64_t bytes) {
    int result;
    (void)ctx;
    nodedb__retry(result, ftruncate(fd, (off_t)bytes));
    return result != 0 ? -errno : 0;
}
static inline int64_t nodedb__posix_size(void *ctx, int fd) {
    struct stat st;
    (void)ctx;
    return fstat(fd, &st) != 0 ? -errno : (int64_t)st.st_size;
}
static inline int nodedb__posix_rename(void *ctx, const char *from, const char *to) {
    (void)ctx;
    return rename(from, to) != 0 ? -errno : 0;
}
static inline int nodedb__posix_unlink(void *ctx, const char *path) {
    (void)ctx;
    return unlink(path) != 0 ? -errno : 0;
}
static inline int nodedb__posix_make_dir(void *ctx, const char *path, int mode) {
    (void)ctx;
    return mkdir(path, (mode_t)mode) != 0 ? -errno : 0;
}
static inline int nodedb__posix_list(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name),
                                     void *visitor) {
    DIR *stream = opendir(dir);
    struct dirent *entry;
    int stop = 0, error;
    (void)ctx;
    if (stream == NULL) return -errno;
    for (errno = 0; stop == 0 && (entry = readdir(stream)) != NULL; errno = 0)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) stop = visit(visitor, entry->d_name);
    error = stop == 0 ? errno : 0;
    (void)closedir(stream);
    return -error;
}
static inline int nodedb__posix_lock(void *ctx, int fd) {
    (void)ctx;
    return flock(fd, LOCK_EX | LOCK_NB) != 0 ? -errno : 0;
}

/* The caller's file system, with the system's own call wherever he left a NULL. */
static inline nodedb_io nodedb__io_or_posix(const nodedb_io *io) {
    nodedb_io full;
    memset(&full, 0, sizeof full);
    if (io != NULL) full = *io;
    if (full.open == NULL) full.open = nodedb__posix_open;
    if (full.close == NULL) full.close = nodedb__posix_close;
    if (full.pread == NULL) full.pread = nodedb__posix_pread;
    if (full.pwrite == NULL) full.pwrite = nodedb__posix_pwrite;
    if (full.sync == NULL) full.sync = nodedb__posix_sync;
    if (full.allocate == NULL) full.allocate = nodedb__posix_allocate;
    if (full.truncate == NULL) full.truncate = nodedb__posix_truncate;
    if (full.size == NULL) full.size = nodedb__posix_size;
    if (full.rename == NULL) full.rename = nodedb__posix_rename;
    if (full.unlink == NULL) full.unlink = nodedb__posix_unlink;
    if (full.make_dir == NULL) full.make_dir = nodedb__posix_make_dir;
    if (full.list == NULL) full.list = nodedb__posix_list;
    if (full.lock == NULL) full.lock = nodedb__posix_lock;
    return full;
}

/* All of `bytes`, or -errno; a write that makes no progress is -EIO, the end of the file within a read is -ENODATA. */
static inline int nodedb__write_all(const nodedb_io *io, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    const char *p = (const char *)buffer;
    while (bytes > 0) {
        int64_t n = io->pwrite(io->ctx, fd, p, bytes, offset);
        if (n == -EINTR) continue;
        if (n <= 0) return n < 0 ? (int)n : -EIO;
        p += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return 0;
}
static inline int nodedb__read_all(const nodedb_io *io, int fd, void *buffer, size_t bytes, uint64_t offset) {
    char *p = (char *)buffer;
    while (bytes > 0) {
        int64_t n = io->pread(io->ctx, fd, p, bytes, offset);
        if (n == -EINTR) continue;
        if (n <= 0) return n < 0 ? (int)n : -ENODATA;
        p += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return 0;
}

/* The end of a long path: so much of it as leaves room in a nodedb_error for what happened, and at which offset. */
static inline const char *nodedb__path_end(const char *path) {
    size_t bytes = strlen(path);
    return bytes > NODEDB_ERROR_MESSAGE_BYTES / 2 ? path + bytes - NODEDB_ERROR_MESSAGE_BYTES / 2 : path;
}

#endif
/* END NODEDB STORAGE BLOCK ======================================================================================== */

/* ===================================================================================================================
 * DECLARATIONS: in the order of section 4 of the manual
 *
 * Every function answers a nodedb_status, and fills *err on failure; err may be NULL. Where a comment says INVALID it
 * means NODEDB_ERR_INVALID, and so on. "The log's failure": a write or sync has failed before, and this call and every
 * later one answer that error (NODEDB_ERR_IO) until the log is opened again. A NULL log or reader is INVALID where a
 * status is answered, fine where the comment says so, and must not be passed to any other function. Functions on a
 * nodedb_wal may be called from any thread unless they say otherwise.
 * ================================================================================================================ */
#ifndef NODEDB_WAL_H
#define NODEDB_WAL_H

#if defined(NODEDB_WAL_STATIC) && !defined(NODEDB_WAL_IMPLEMENTATION)
#error "NODEDB_WAL_STATIC needs NODEDB_WAL_IMPLEMENTATION in the same file"
#endif
#if !defined(NODEDB_WAL_API) && defined(NODEDB_WAL_STATIC)
#define NODEDB_WAL_API static __attribute__((unused))
#elif !defined(NODEDB_WAL_API)
#define NODEDB_WAL_API extern
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* ---- limits and constants --------------------------------------------------------------------------------------- */

#define NODEDB_WAL_RECORD_MAGIC UINT32_C(0x53594E57)
#define NODEDB_WAL_FORMAT_VERSION 1
#define NODEDB_WAL_RECORD_HEADER_BYTES 64
#define NODEDB_WAL_PREAMBLE_BYTES 64
#define NODEDB_WAL_MAX_PAYLOAD_BYTES (UINT32_C(64) << 20)
#define NODEDB_WAL_DEFAULT_SEGMENT_BYTES (UINT64_C(64) << 20)
#define NODEDB_WAL_MIN_SEGMENT_BYTES (UINT64_C(64) << 10)
#define NODEDB_WAL_MAX_SEGMENTS 65536
#define NODEDB_WAL_DEFAULT_GROUP_BYTES ((size_t)1 << 20)
#define NODEDB_WAL_MAX_GROUPS 16
#define NODEDB_WAL_DEFAULT_GROUPS 8
#define NODEDB_WAL_MIN_BLOCK_BYTES 4096 /* what every disk of today writes whole */
#define NODEDB_WAL_MAX_DIR_BYTES 3800
#define NODEDB_WAL_MAX_THREADS 16
#define NODEDB_WAL_NONCE_BYTES 12
#define NODEDB_WAL_TAG_BYTES 16 /* what encryption adds to a payload */
#define NODEDB_WAL_PARALLEL_FROM_SEGMENTS 4 /* with fewer, threads that check ahead gain nothing */
#define NODEDB_WAL_MAX_TRANSACTION_RECORDS 65536
#define NODEDB_WAL_MAX_TOMBSTONES 65536
#define NODEDB_WAL_MAX_FIRST_LSN (UINT64_C(1) << 62) /* half of all LSNs are left to a log that begins there */
#define NODEDB_WAL_NO_COLLECTION UINT64_MAX /* from collection_of: no tombstone drops this record */

/* Record types. Below 256 stand the well-known types, 256 to 16383 are the application's. Appending any other type is
 * INVALID. A reader that meets one (of a later release) skips it, or stops with UNSUPPORTED where NODEDB_WAL_REQUIRED
 * is set in it. Seals are noops that no reader hands out. */
enum {
    NODEDB_WAL_TYPE_NOOP = 0,
    NODEDB_WAL_TYPE_PUT = 1,
    NODEDB_WAL_TYPE_DELETE = 2,
    NODEDB_WAL_TYPE_VECTOR_PUT = 10,
    NODEDB_WAL_TYPE_VECTOR_DELETE = 11,
    NODEDB_WAL_TYPE_VECTOR_PARAMS = 12,
    NODEDB_WAL_TYPE_TRANSACTION = 50,
    NODEDB_WAL_TYPE_CHECKPOINT = 100,
    NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE = 101,
    NODEDB_WAL_TYPE_LSN_ANCHOR = 102,
    NODEDB_WAL_TYPE_USER = 256,
    NODEDB_WAL_TYPE_MASK = 0x3FFF,
    NODEDB_WAL_ENCRYPTED = 0x4000, /* bit 14: the log sets it, an application must not */
    NODEDB_WAL_REQUIRED = 0x8000   /* bit 15: the application may set it */
};

/* One record, on its way in or out. To append, set type and payload and, if they mean something to you, tenant, vshard
 * and database; the other fields are ignored, and the payload is copied before the call returns. From a reader every
 * field is set. `payload` then points into the reader's memory, and is valid until the next call on that reader. */
typedef struct nodedb_wal_record {
    uint64_t lsn;
    uint64_t watermark; /* the durable LSN when the record was appended */
    uint64_t database;
    uint32_t tenant;
    uint32_t vshard;
    uint16_t type; /* with NODEDB_WAL_REQUIRED where it is set; with NODEDB_WAL_ENCRYPTED only under keep_encrypted */
    uint32_t payload_bytes;
    const void *payload; /* may be NULL where payload_bytes is 0 */
    const void *source;  /* private: the reader that handed it out, or NULL. In a copy that is kept set it to NULL */
} nodedb_wal_record;

/* ---- encryption: what the caller's cipher does ------------------------------------------------------------------ */

/* What the cipher seals or opens in one call. The log's memory, valid during the call. */
typedef struct nodedb_wal_sealing {
    uint32_t key_id;
    uint64_t log_id, epoch;
    uint64_t lsn; /* 0: the key check of a segment, whose text is empty, and not a record */
    unsigned char nonce[NODEDB_WAL_NONCE_BYTES]; /* within one log never the same for two texts or headers */
    const unsigned char *header; /* what the tag must cover beside the text (additional authenticated data) */
    size_t header_bytes;
} nodedb_wal_sealing;

/* Encryption at rest: an authenticated cipher with a nonce of 12 bytes and a tag of 16 (AES-256-GCM,
 * ChaCha20-Poly1305), and the keys. Zeroed: no encryption. A writer needs all three functions, a reader `open` only. A
 * writer calls them with the log's lock held, a reader on the thread that reads. So the calls of one log or reader
 * never overlap, and a ctx that several logs or readers share must guard itself. None may call the log. */
typedef struct nodedb_wal_cipher {
    /* The key for a segment that begins now. Never 0; the same number must always mean the same key. */
    uint32_t (*key_id)(void *ctx);
    /* Encrypts `bytes` bytes of `text` in place and writes NODEDB_WAL_TAG_BYTES of tag. Anything but OK: the record is
     * not appended, and the call answers KEY. */
    nodedb_status (*seal)(void *ctx, const nodedb_wal_sealing *s, unsigned char *text, size_t bytes,
                          unsigned char *tag);
    /* Checks the tag and writes `bytes` bytes of plain text to `plain`, which does not overlap `text`. CORRUPT: the tag
     * does not fit. KEY, and anything else: there is no key of this id. */
    nodedb_status (*open)(void *ctx, const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes,
                          const unsigned char *tag, unsigned char *plain);
    void *ctx;
} nodedb_wal_cipher;

/* ---- open and close --------------------------------------------------------------------------------------------- */

/* Names the collection of a record, which a tombstone can drop. It must always answer the same for the same record, in
 * the writer and in every reader. It is asked about tombstones too: one of nodedb_wal_append_tombstone has no payload,
 * and the collection in `database`. It is asked about the records in a transaction, and never about noops, checkpoints,
 * anchors and the transaction itself. Called with the log's lock held: it must not call the log. */
typedef uint64_t (*nodedb_wal_collection_fn)(void *ctx, const nodedb_wal_record *record);

/* How a log writes. nodedb_wal_describe tells what became of AUTO. */
typedef enum nodedb_wal_backend {
    NODEDB_WAL_BACKEND_AUTO = 0, /* io_uring; POSIX, and a sentence to the logger, where it is refused */
    NODEDB_WAL_BACKEND_IO_URING, /* io_uring; UNSUPPORTED where it is refused */
    NODEDB_WAL_BACKEND_POSIX     /* pwrite, and one fdatasync for all groups that wait */
} nodedb_wal_backend;

/* How to open a log. Set `dir`, and leave zero what is to have its default, in brackets. Copied when the log opens. */
typedef struct nodedb_wal_config {
    const char *dir;        /* made if missing; its parent must exist */
    uint64_t segment_bytes; /* [64 MiB] at least 64 KiB; rounded up to blocks. Each opening begins a segment */
    size_t group_bytes;     /* [1 MiB] most bytes in one group, at most 64 MiB; rounded up to blocks */
    uint32_t groups;        /* [8] group buffers, 2 to 16: one fills while the others are in flight */
    nodedb_wal_backend backend; /* [AUTO] */
    bool no_recycling;      /* every new segment is filled with zeros: manual, section 3, rule 5 */
    bool buffered;          /* through the page cache instead of O_DIRECT, and without io_uring */
    uint64_t first_lsn;     /* [1] of a new log, at most 2^62; ignored where a log is there */
    uint64_t log_id;        /* [random] of a new log; set it for byte-identical logs in tests */
    nodedb_wal_collection_fn collection_of; /* [record->database] */
    void *collection_ctx;
    nodedb_io io; /* [the system's calls] several threads call it at once. Another `open` or `pwrite`: POSIX backend */
    nodedb_allocator allocator; /* [posix_memalign and free] any thread that calls the log calls it */
    nodedb_logger logger;       /* [nowhere] may be called with the log's lock held: it must not call the log */
    nodedb_clock clock;         /* [CLOCK_MONOTONIC] for the latencies in nodedb_wal_stats only */
    nodedb_wal_cipher cipher;   /* [none] new segments are encrypted */
} nodedb_wal_config;

/* One writer of one log. Made by nodedb_wal_open, freed by nodedb_wal_close; the contents are private. */
typedef struct nodedb_wal nodedb_wal;

/* Opens the log in config->dir for writing, recovers it, and begins a segment. The caller closes the result. NULL with:
 * INVALID (config), LOCKED (another writer has it), CORRUPT (an acknowledged record, a preamble or the file of
 * tombstones is damaged, or that file is missing or of another log: file, offset, LSNs), DISK_FULL, IO, NO_MEMORY,
 * UNSUPPORTED (io_uring was demanded and is refused), LIMIT (too many segments), KEY (the log is encrypted and there is
 * no cipher, or it has not the key of one of the last two segments, or could not seal). Where the disk has no room for
 * a segment the log opens all the same, and nodedb_wal_append answers DISK_FULL until there is room. */
NODEDB_WAL_API nodedb_wal *nodedb_wal_open(const nodedb_wal_config *config, nodedb_error *err);

/* Makes everything appended durable, writes the seal, and frees the log, also on failure. No other call may be under
 * way, and readers that follow the log must be closed. NULL is fine. Errors: the log's failure. Any other error of
 * nodedb_wal_append (but for DISK_FULL, which is no error here): all records are durable, and only the seal is
 * missing. */
NODEDB_WAL_API nodedb_status nodedb_wal_close(nodedb_wal *wal, nodedb_error *err);

/* ---- write from many threads ------------------------------------------------------------------------------------ */

/* Appends `count` records (at least 1), in this order, and blocks until all are durable. Other threads' records may
 * come between them; nodedb_wal_commit_transaction keeps them together. *last_lsn (if not NULL) is the LSN of the last
 * one. Threads that commit at the same time share a group. All records are checked before the first has an LSN: on
 * INVALID, and on LIMIT for a payload or for tombstones, nothing was done. What can fail only later (DISK_FULL,
 * NO_MEMORY, KEY, LIMIT of segments, the log's failure) acknowledges none either, but the first few records may have
 * LSNs: then they stay in the log, become durable with what follows, and readers hand them out. Use
 * nodedb_wal_commit_transaction for all or none. Errors: as nodedb_wal_append and nodedb_wal_wait, but never AGAIN. */
NODEDB_WAL_API nodedb_status nodedb_wal_commit(nodedb_wal *wal, const nodedb_wal_record *records, size_t count,
                                               uint64_t *last_lsn, nodedb_error *err);

/* ---- write from one core, without waiting ----------------------------------------------------------------------- */

/* Copies one record into the open group and gives it an LSN, in *lsn if that is not NULL. It is durable when
 * nodedb_wal_durable_lsn has reached that LSN. Where the record does not fit the open group, that group is sent first,
 * as by nodedb_wal_submit. Where the segment is full, the next one begins: a rename and two syncs, and filling it if it
 * has not been prepared in time. Errors: INVALID (payload NULL and payload_bytes above 0; a type that does not exist; a
 * payload that does not fit a well-known type; a tombstone of no collection; the cipher named key 0 for a new segment),
 * LIMIT (payload, segments, tombstones, LSNs), AGAIN (all groups are in flight, or groups to the segment before the
 * last still are: poll or wait, then append again), DISK_FULL, IO (the next segment cannot be prepared), NO_MEMORY, KEY
 * (the cipher could not seal it), the log's failure. On any error the record has no LSN. */
NODEDB_WAL_API nodedb_status nodedb_wal_append(nodedb_wal *wal, const nodedb_wal_record *record, uint64_t *lsn,
                                               nodedb_error *err);

/* Closes the open group and sends it to the disk. OK where it is empty. AGAIN where no other group buffer is free:
 * poll, and submit again. Errors: the log's failure. */
NODEDB_WAL_API nodedb_status nodedb_wal_submit(nodedb_wal *wal, nodedb_error *err);

/* Takes notice of finished writes without blocking (the POSIX backend does the writes here, and so blocks), prepares a
 * bit of the next segment, and puts the durable LSN into *durable_lsn (if not NULL). Errors: the log's failure. */
NODEDB_WAL_API nodedb_status nodedb_wal_poll(nodedb_wal *wal, uint64_t *durable_lsn, nodedb_error *err);

/* Submits as needed and blocks until `lsn` is durable. INVALID where it has not been given out; the log's failure. */
NODEDB_WAL_API nodedb_status nodedb_wal_wait(nodedb_wal *wal, uint64_t lsn, nodedb_error *err);

/* A descriptor, for poll(2) and epoll, that is readable when nodedb_wal_poll has something to do. It is the log's: do
 * not read or close it. The same one for the life of the log. */
NODEDB_WAL_API int nodedb_wal_fd(const nodedb_wal *wal);
/* Groups that are on their way to the disk: 0 to config.groups - 1. */
NODEDB_WAL_API uint32_t nodedb_wal_groups_in_flight(nodedb_wal *wal);

/* ---- where the log is ------------------------------------------------------------------------------------------- */

/* The first LSN of the oldest segment: the lowest from_lsn that a reader can open with. One more than the last LSN
 * where the log has no record. Moves up when the log is truncated. */
NODEDB_WAL_API uint64_t nodedb_wal_first_lsn(nodedb_wal *wal);
/* Every record up to this LSN is durable. 0, or config.first_lsn - 1, where there is none. One load, without the lock.
 */
NODEDB_WAL_API uint64_t nodedb_wal_durable_lsn(const nodedb_wal *wal);
/* The last LSN that was given out, durable or not. */
NODEDB_WAL_API uint64_t nodedb_wal_last_lsn(nodedb_wal *wal);

/* ---- transactions, tombstones and anchors ----------------------------------------------------------------------- */

/* Appends `count` records as one record of type NODEDB_WAL_TYPE_TRANSACTION, with one LSN: after a crash all of them
 * are there, or none. Tenant, vshard and database of that record are those of the first. The parts may be REQUIRED;
 * neither transactions nor tombstones can be parts (INVALID). LIMIT above NODEDB_WAL_MAX_TRANSACTION_RECORDS, or where
 * the payload passes 64 MiB: 8 bytes, and for each part 24 and its payload, rounded up to 8. Else as
 * nodedb_wal_append. */
NODEDB_WAL_API nodedb_status nodedb_wal_append_transaction(nodedb_wal *wal, const nodedb_wal_record *records,
                                                           size_t count, uint64_t *lsn, nodedb_error *err);
/* The same, and blocks until it is durable. Never AGAIN. */
NODEDB_WAL_API nodedb_status nodedb_wal_commit_transaction(nodedb_wal *wal, const nodedb_wal_record *records,
                                                           size_t count, uint64_t *lsn, nodedb_error *err);

/* Appends the tombstone of a collection. Once it is durable, every record of `tenant` and that collection with a lower
 * LSN is dead, in whatever segment it stands. Appending a record of type NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE does the
 * same. LIMIT where the log has NODEDB_WAL_MAX_TOMBSTONES; INVALID where collection_of answers
 * NODEDB_WAL_NO_COLLECTION. Else as nodedb_wal_append. */
NODEDB_WAL_API nodedb_status nodedb_wal_append_tombstone(nodedb_wal *wal, uint32_t tenant, uint64_t database,
                                                         uint64_t *lsn, nodedb_error *err);
/* Forgets the durable tombstones with an LSN below before_lsn. The caller knows that no segment is older, neither here
 * nor in an archive. *forgotten (if not NULL): how many. Errors: DISK_FULL (nothing was forgotten), the log's failure.
 */
NODEDB_WAL_API nodedb_status nodedb_wal_forget_tombstones(nodedb_wal *wal, uint64_t before_lsn, size_t *forgotten,
                                                          nodedb_error *err);
/* An entry of the list of tombstones. Plain data. */
typedef struct nodedb_wal_tombstone {
    uint64_t lsn; /* everything of the collection below it is dead */
    uint64_t collection;
    uint32_t tenant;
} nodedb_wal_tombstone;
/* Copies the durable tombstones, the newest of each collection, ascending by LSN, into `out`: the first `most` of them
 * (out may be NULL where most is 0). Answers how many there are; 0 for NULL. */
NODEDB_WAL_API size_t nodedb_wal_list_tombstones(nodedb_wal *wal, nodedb_wal_tombstone *out, size_t most);

/* Appends an anchor: its LSN was given out at `unix_ns`, nanoseconds since 1970 (0: now, by CLOCK_REALTIME). An anchor
 * that is appended as a record must have a payload of 8 bytes. Else as nodedb_wal_append. */
NODEDB_WAL_API nodedb_status nodedb_wal_append_anchor(nodedb_wal *wal, uint64_t unix_ns, uint64_t *lsn,
                                                      nodedb_error *err);

/* ---- give space back, change the key ---------------------------------------------------------------------------- */

/* Removes, or keeps as spares, the segments all of whose records are durable and below `lsn`; never the newest. First
 * make the checkpoint durable that holds their effect. Readers are not waited for: one that is still in such a segment
 * gets NOT_FOUND, and a payload from a MAPPED segment may change (manual, section 4). *removed (if not NULL): how many
 * segments. Errors: DISK_FULL (the tombstones in them cannot be saved; nothing was lost), the log's failure. */
NODEDB_WAL_API nodedb_status nodedb_wal_truncate_before(nodedb_wal *wal, uint64_t lsn, uint32_t *removed,
                                                        nodedb_error *err);

/* Deletes the spares, truncated segments that wait for their next use, for a disk that is needed more elsewhere; up to
 * four, but not the segment that is prepared to be the next. Later segments are filled with zeros again. Answers how
 * many there were; 0 for NULL. */
NODEDB_WAL_API uint32_t nodedb_wal_drop_spares(nodedb_wal *wal);

/* The next record begins a new segment, so that a new key counts from there, or the files before it can be archived.
 * Does no I/O. Where the current segment has no record yet, nothing changes; but if the cipher names another key by
 * now, a seal fills the segment and takes an LSN. Errors: KEY (that seal), the log's failure. */
NODEDB_WAL_API nodedb_status nodedb_wal_rollover(nodedb_wal *wal, nodedb_error *err);

/* ---- look ------------------------------------------------------------------------------------------------------- */

/* What a writer has done since it was opened. A copy, taken at one moment. */
typedef struct nodedb_wal_stats {
    uint64_t records, groups, payload_bytes, written_bytes, padding_bytes, syncs, segments_begun, segments_recycled;
    double records_per_group; /* on average */
    uint64_t commit_p50_ns, commit_p99_ns, commit_p999_ns; /* from submit to durable, within 1/8; of groups */
    uint64_t dropped_bytes; /* torn tail that recovery dropped: first bad byte to last nonzero, at most. Not known to be
                               acknowledged. In a recycled file only what has a header of this segment is counted */
} nodedb_wal_stats;

NODEDB_WAL_API void nodedb_wal_get_stats(nodedb_wal *wal, nodedb_wal_stats *stats);
/* How this log writes: "io_uring, O_DIRECT, 4096-byte blocks, 65536 KiB segments". The log's memory; never changes. */
NODEDB_WAL_API const char *nodedb_wal_describe(const nodedb_wal *wal);

/* ---- read ------------------------------------------------------------------------------------------------------- */

/* How a reader gets at the segments. */
typedef enum nodedb_wal_access {
    /* What is fastest: STREAMED where at least 4 MiB are to be read and most of them are not in the page cache. Else,
     * and where there is no io_uring or O_DIRECT, MAPPED. */
    NODEDB_WAL_ACCESS_AUTO = 0,
    /* Segments are mapped, and payloads point into the map. Nobody may shorten the files meanwhile (the log never
     * does). A disk that cannot read a page raises SIGBUS; STREAMED and BUFFERED answer IO instead. */
    NODEDB_WAL_ACCESS_MAPPED,
    /* pread into a buffer. Always so with a caller's nodedb_io, and for the segment that a followed log is writing. */
    NODEDB_WAL_ACCESS_BUFFERED,
    /* Read ahead past the page cache (manual, section 6). BUFFERED, with a sentence to the logger, where io_uring or
     * O_DIRECT is refused. Also BUFFERED with a caller's nodedb_io, with `follow`, and where blocks are larger than 512
     * KiB. */
    NODEDB_WAL_ACCESS_STREAMED
} nodedb_wal_access;

/* How to read a log. Set `dir`, and leave zero what is to have its default, in brackets. Copied. */
typedef struct nodedb_wal_reader_config {
    const char *dir;
    uint64_t from_lsn; /* [the oldest record] the first LSN to hand out */
    nodedb_wal_access access; /* [AUTO] */
    uint32_t threads; /* [1] check this many mapped segments ahead in threads, from 4 segments on; at most 16 */
    const nodedb_wal *follow; /* [none] the open log of this directory: the reader goes as far as its durable LSN */
    uint64_t until_lsn; /* [the end] the last LSN to read: AGAIN behind it, and tombstones behind it drop nothing */
    bool keep_dropped;  /* hand out what the file of tombstones says is dead, and do not read that file */
    nodedb_wal_collection_fn collection_of; /* [record->database] the writer's */
    void *collection_ctx;
    nodedb_io io;               /* [the system's calls] */
    nodedb_allocator allocator; /* [posix_memalign and free] */
    nodedb_logger logger;       /* [nowhere] */
    nodedb_wal_cipher cipher;   /* [none] `open`, for encrypted segments */
    bool keep_encrypted; /* encrypted records as they are stored, with NODEDB_WAL_ENCRYPTED, text and tag, and no
                            cipher. Nothing is dropped then */
} nodedb_wal_reader_config;

/* What a reader has done since it was opened. */
typedef struct nodedb_wal_reader_stats {
    uint64_t records, payload_bytes, segments_opened;
    uint64_t hints_sequential; /* MADV_SEQUENTIAL given, one for each mapped segment */
    uint64_t hints_dontneed;   /* MADV_DONTNEED and POSIX_FADV_DONTNEED given, one for each segment left behind */
    uint64_t torn_bytes;       /* as nodedb_wal_stats.dropped_bytes */
    uint64_t skipped;          /* records of unknown types that are not required */
    uint64_t dropped;          /* records of dropped collections */
    uint64_t segments_streamed;
} nodedb_wal_reader_stats;

/* A place in a log: plain data that may be stored. Zeroed: the reader's from_lsn. */
typedef struct nodedb_wal_cursor {
    uint64_t lsn; /* of the next record */
    uint64_t segment_first_lsn, offset;
} nodedb_wal_cursor;

/* One reader. One thread at a time may use it. The contents are private. */
typedef struct nodedb_wal_reader nodedb_wal_reader;

/* Opens a reader, without a lock. The caller closes it. NULL with: INVALID; NOT_FOUND (no log there: err->lsn is 0; or
 * from_lsn or until_lsn lies before the oldest record: err->lsn is the oldest; or the log was truncated just then: open
 * again); CORRUPT (a preamble, the file of tombstones, or a clear segment behind an encrypted one); KEY (the cipher has
 * not the first segment's key); IO, NO_MEMORY, LIMIT. */
NODEDB_WAL_API nodedb_wal_reader *nodedb_wal_reader_open(const nodedb_wal_reader_config *config, nodedb_error *err);
/* Puts the next record, in the order of LSNs, into *record; its payload is valid until the next call. AGAIN at the end
 * of the log; of a followed log, for now. Every other error is final for this reader:
 *   CORRUPT      an acknowledged record cannot be read, or was altered: err->lsn and err->offset say which and where
 *   NOT_FOUND    the record, in err->lsn, was truncated before it was read
 *   UNSUPPORTED  a required record of an unknown type
 *   KEY          the record is encrypted and there is no cipher, or it has not the segment's key
 *   IO, NO_MEMORY */
NODEDB_WAL_API nodedb_status nodedb_wal_reader_next(nodedb_wal_reader *reader, nodedb_wal_record *record,
                                                    nodedb_error *err);
/* Where the reader will go on: behind the record that it has handed out last, and the seals and skipped records that it
 * has passed since. Right after opening with from_lsn 0 cursor->lsn is the oldest LSN there is. */
NODEDB_WAL_API void nodedb_wal_reader_tell(const nodedb_wal_reader *reader, nodedb_wal_cursor *cursor);
NODEDB_WAL_API void nodedb_wal_reader_get_stats(const nodedb_wal_reader *reader, nodedb_wal_reader_stats *stats);
NODEDB_WAL_API void nodedb_wal_reader_close(nodedb_wal_reader *reader); /* NULL is fine */

/* ---- follow ----------------------------------------------------------------------------------------------------- */

/* Blocks until others have made `lsn` durable, given out yet or not; submits nothing. For a thread that follows the
 * log, with the LSN behind the last record that it has read. Errors: TIMEOUT after timeout_ns nanoseconds (at most a
 * day), CANCELLED (see below), the log's failure. */
NODEDB_WAL_API nodedb_status nodedb_wal_await(nodedb_wal *wal, uint64_t lsn, uint64_t timeout_ns, nodedb_error *err);
/* With true: every thread that sleeps in nodedb_wal_await wakes with CANCELLED, and so does each later call instead of
 * sleeping. What is durable still answers OK. With false, calls sleep again. It is a switch and not a pulse, so a
 * follower on its way into nodedb_wal_await cannot miss it. */
NODEDB_WAL_API void nodedb_wal_cancel_await(nodedb_wal *wal, bool cancel);

/* ---- replay ----------------------------------------------------------------------------------------------------- */

/* Called for each record in the order of LSNs, on the thread that replays. Anything but OK ends the replay with that
 * status. */
typedef nodedb_status (*nodedb_wal_apply_fn)(void *ctx, const nodedb_wal_record *record);

/* Calls `apply` for every record from config->from_lsn to the end. config->threads 0 means here: as many as there are
 * CPUs, at most 4. *stats may be NULL. Errors: those of nodedb_wal_reader_open and _next (but not AGAIN), and the
 * callback's, for which err->lsn names the record; NOT_FOUND also where the log ends before from_lsn - 1. */
NODEDB_WAL_API nodedb_status nodedb_wal_replay(const nodedb_wal_reader_config *config, nodedb_wal_apply_fn apply,
                                               void *ctx, nodedb_wal_reader_stats *stats, nodedb_error *err);
/* Calls `apply` for at most `limit` records from *cursor on, moves *cursor behind them, and says in *has_more whether
 * there are more. For work in portions, or with a cursor that is stored between them. One thread, and AUTO means MAPPED
 * here, as each call would begin a stream of its own. Errors: as nodedb_wal_replay. */
NODEDB_WAL_API nodedb_status nodedb_wal_replay_page(const nodedb_wal_reader_config *config, nodedb_wal_cursor *cursor,
                                                    size_t limit, nodedb_wal_apply_fn apply, void *ctx, bool *has_more,
                                                    nodedb_error *err);

/* ---- read what has a meaning ------------------------------------------------------------------------------------ */

/* Where a walk through a transaction is. Read `count`, `skipped` and `dropped`; the rest is private. Valid as long as
 * the payload of the transaction's record. */
typedef struct nodedb_wal_transaction {
    nodedb_wal_record record; /* the transaction as the reader handed it out */
    uint32_t count;           /* records in it */
    uint32_t skipped;         /* passed over so far: of unknown types that are not required */
    uint32_t dropped;         /* passed over so far: of dropped collections */
    uint32_t next;
    size_t at;
} nodedb_wal_transaction;

/* Begins to walk through a record of type NODEDB_WAL_TYPE_TRANSACTION. The whole payload is checked first. Errors:
 * INVALID (no transaction), CORRUPT (its payload is not that of a transaction), UNSUPPORTED (it holds a required record
 * of an unknown type). */
NODEDB_WAL_API nodedb_status nodedb_wal_transaction_open(const nodedb_wal_record *record, nodedb_wal_transaction *tx,
                                                         nodedb_error *err);
/* Puts the next record of the transaction into *sub, with the transaction's LSN and watermark; false at the end. Passes
 * over what the reader that handed the transaction out would skip or drop. */
NODEDB_WAL_API bool nodedb_wal_transaction_next(nodedb_wal_transaction *tx, nodedb_wal_record *sub);

/* Puts the LSN of the last anchor whose time is not after unix_ns into *lsn. Reads the log from config->from_lsn to the
 * end, as the system's clock may have been set back. Errors: NOT_FOUND where there is no such anchor; those of
 * nodedb_wal_reader_open and _next. */
NODEDB_WAL_API nodedb_status nodedb_wal_lsn_at(const nodedb_wal_reader_config *config, uint64_t unix_ns, uint64_t *lsn,
                                               nodedb_error *err);

/* ---- check ------------------------------------------------------------------------------------------------------ */

/* What nodedb_wal_verify has found. */
typedef struct nodedb_wal_report {
    uint64_t segments, records, first_lsn, last_lsn, payload_bytes, torn_bytes;
    bool sealed; /* a seal ends it: it was closed in order, and if it is open now, nothing has been written since */
    uint64_t tombstones, tombstones_lsn; /* entries of the file of tombstones; it holds every one up to this LSN */
} nodedb_wal_report;
/* Reads the records of a log from config->from_lsn to until_lsn (0: all), dropped or not, and the file of tombstones.
 * Answers OK, or what is wrong; *report (if not NULL) is filled as far as it went. Encrypted records are judged by
 * their checksums, and with a cipher by their tags as well. Errors: those of nodedb_wal_reader_open and _next. */
NODEDB_WAL_API nodedb_status nodedb_wal_verify(const nodedb_wal_reader_config *config, nodedb_wal_report *report,
                                               nodedb_error *err);

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_WAL_H */

/* ===================================================================================================================
 * IMPLEMENTATION
 *
 *   FORMAT                       the bytes of a segment; the files of a directory
 *   VIEW                         a reader's state; its bytes: mapped, buffered or streamed
 *   TORN TAIL                    the end of the log, or damage: the rules, and the code that decides
 *   READER                       the next record; open, replay, verify
 *   WRITER                       a writer's state; append; the life of a group
 *   BACKENDS                     POSIX calls and io_uring
 *   COMMIT                       threads that wait: leaders and sleepers; the API of writing
 *   NEXT SEGMENT                 prepared, begun, recycled, truncated
 *   OPEN AND CLOSE               recovery, and the seal at the end
 *   TRANSACTIONS AND TOMBSTONES  what some record types mean; the file of tombstones
 *   READ AHEAD                   streams and threads
 *   ENCRYPTION                   seal and open; why no nonce is used twice
 * ================================================================================================================ */
#if defined(NODEDB_WAL_IMPLEMENTATION) && !defined(NODEDB_WAL_IMPLEMENTED)
#define NODEDB_WAL_IMPLEMENTED

#include <assert.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#if !defined(NODEDB_NO_LIBURING) && defined(__has_include)
#if !__has_include(<liburing.h>)
#define NODEDB_NO_LIBURING
#endif
#endif
#if !defined(NODEDB_NO_LIBURING)
#include <liburing.h>
#endif

/* ===================================================================================================================
 * FORMAT: the bytes of a segment, and the files of a directory
 *
 * Section "On disk" of the manual draws the format; here its offsets have names. A log is a directory of segment
 * files. A segment is a preamble, in a block of its own, and groups behind it. A group is records, then zeros up to a
 * whole block:
 *
 *     block 0      block 1               block 2       block 3             ...   end of the file
 *     | preamble | r1 | r2 | r3 | 0000 | r4 ......... ......... | 0000000 | never written: zeros, or an earlier use |
 *                  group of 1 block      group of 2 blocks
 *
 * A group is one write. The block is what the device writes whole, so no write touches a block of an earlier group.
 * ================================================================================================================ */

#define NODEDB_WAL__FLAG_SEAL UINT32_C(1) /* of a record: the segment's last, which no reader hands out */
#define NODEDB_WAL__GROUP_BLOCKS_SHIFT 1  /* in a record's flags: 15 bits */
#define NODEDB_WAL__GROUP_BLOCKS_MASK UINT32_C(0x7FFF)
#define NODEDB_WAL__GROUP_ZEROS_SHIFT 16 /* 16 bits */
#define NODEDB_WAL__GROUP_ZEROS_MAX UINT32_C(0xFFFF)
#define NODEDB_WAL__SECTOR_BYTES ((size_t)512) /* what every disk writes whole or not at all */
#define NODEDB_WAL__SIGNED_BYTES ((size_t)60)  /* of a preamble and of a record's header: what a cipher authenticates */
#define NODEDB_WAL__PATH_BYTES (NODEDB_WAL_MAX_DIR_BYTES + 64)
#define NODEDB_WAL__MAX_LISTED_SPARES 64
#define NODEDB_WAL__MAX_DEAD 8   /* dead-E.wal files that are remembered; a crash leaves one at most */
#define NODEDB_WAL__LIST_TRIES 8 /* a directory that is being truncated may change while it is listed */

/* ---- sizes and zeros -------------------------------------------------------------------------------------------- */

static inline uint64_t nodedb_wal__round_up(uint64_t value, uint64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

/* A record with its header, up to where the next one may begin: a multiple of 8. */
static inline size_t nodedb_wal__record_bytes(uint32_t payload_bytes) {
    return ((size_t)NODEDB_WAL_RECORD_HEADER_BYTES + payload_bytes + 7) & ~(size_t)7;
}

static inline uint32_t nodedb_wal__tag_bytes(uint16_t type) {
    return (type & NODEDB_WAL_ENCRYPTED) != 0 ? NODEDB_WAL_TAG_BYTES : 0;
}

static inline bool nodedb_wal__all_zero(const unsigned char *p, size_t bytes) {
    uint64_t word;
    for (; bytes >= sizeof word; bytes -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        if (word != 0) return false;
    }
    for (; bytes > 0; bytes--)
        if (*p++ != 0) return false;
    return true;
}

/* How many of these sectors are all zero. */
static inline uint32_t nodedb_wal__zero_sectors(const unsigned char *p, size_t bytes) {
    uint32_t zeros = 0;
    for (; bytes >= NODEDB_WAL__SECTOR_BYTES; bytes -= NODEDB_WAL__SECTOR_BYTES, p += NODEDB_WAL__SECTOR_BYTES)
        zeros += nodedb_wal__all_zero(p, NODEDB_WAL__SECTOR_BYTES);
    return zeros;
}

/* ---- a segment: its preamble ------------------------------------------------------------------------------------ */

/* A preamble: bytes of a segment's first block, as section 9 of the manual draws it. */
enum {
    NODEDB_WAL__PREAMBLE_MAGIC_AT = 0, /* "WALP" */
    NODEDB_WAL__PREAMBLE_VERSION_AT = 4,
    NODEDB_WAL__PREAMBLE_FLAGS_AT = 6, /* bit 0: recycled */
    NODEDB_WAL__PREAMBLE_LOG_ID_AT = 8,
    NODEDB_WAL__PREAMBLE_EPOCH_AT = 16,
    NODEDB_WAL__PREAMBLE_FIRST_LSN_AT = 24,
    NODEDB_WAL__PREAMBLE_BYTES_AT = 32,
    NODEDB_WAL__PREAMBLE_BLOCK_BYTES_AT = 40,
    NODEDB_WAL__PREAMBLE_KEY_ID_AT = 44,
    NODEDB_WAL__PREAMBLE_WATERMARK_AT = 48,
    NODEDB_WAL__PREAMBLE_TOMBSTONES_AT = 56,
    NODEDB_WAL__PREAMBLE_CRC_AT = 60,
    NODEDB_WAL__PREAMBLE_KEY_CHECK_AT = 64 /* of an encrypted segment: a tag */
};

/* One segment, as its preamble describes it. It does not change while the file has this name. */
typedef struct nodedb_wal__segment {
    uint64_t first_lsn, log_id, epoch, bytes, watermark;
    uint32_t block_bytes;
    uint32_t key_id;     /* 0: not encrypted */
    uint32_t seed;       /* CRC-32C of log id, epoch and first LSN: the checksums of its records begin with it */
    uint32_t tombstones; /* in their file when the segment was begun */
    bool recycled;       /* what is not written yet is not zero, but records of an earlier use */
} nodedb_wal__segment;

/* A checksum begins with what tells this use of the file from every other, so no record of an earlier use passes. */
static uint32_t nodedb_wal__seed_of(const unsigned char *preamble) {
    return nodedb_crc32c(0, preamble + NODEDB_WAL__PREAMBLE_LOG_ID_AT,
                         NODEDB_WAL__PREAMBLE_BYTES_AT - NODEDB_WAL__PREAMBLE_LOG_ID_AT);
}

static void nodedb_wal__encode_preamble(unsigned char *block, const nodedb_wal__segment *segment) {
    memset(block, 0, segment->block_bytes);
    memcpy(block + NODEDB_WAL__PREAMBLE_MAGIC_AT, "WALP", 4);
    nodedb_put_u16(block + NODEDB_WAL__PREAMBLE_VERSION_AT, NODEDB_WAL_FORMAT_VERSION);
    nodedb_put_u16(block + NODEDB_WAL__PREAMBLE_FLAGS_AT, segment->recycled ? 1 : 0);
    nodedb_put_u64(block + NODEDB_WAL__PREAMBLE_LOG_ID_AT, segment->log_id);
    nodedb_put_u64(block + NODEDB_WAL__PREAMBLE_EPOCH_AT, segment->epoch);
    nodedb_put_u64(block + NODEDB_WAL__PREAMBLE_FIRST_LSN_AT, segment->first_lsn);
    nodedb_put_u64(block + NODEDB_WAL__PREAMBLE_BYTES_AT, segment->bytes);
    nodedb_put_u32(block + NODEDB_WAL__PREAMBLE_BLOCK_BYTES_AT, segment->block_bytes);
    nodedb_put_u32(block + NODEDB_WAL__PREAMBLE_KEY_ID_AT, segment->key_id);
    nodedb_put_u64(block + NODEDB_WAL__PREAMBLE_WATERMARK_AT, segment->watermark);
    nodedb_put_u32(block + NODEDB_WAL__PREAMBLE_TOMBSTONES_AT, segment->tombstones);
    nodedb_put_u32(block + NODEDB_WAL__PREAMBLE_CRC_AT, nodedb_crc32c(0, block, NODEDB_WAL__PREAMBLE_CRC_AT));
}

/* False: the bytes are not a preamble that this version writes. */
static bool nodedb_wal__decode_preamble(const unsigned char *block, nodedb_wal__segment *segment) {
    if (memcmp(block + NODEDB_WAL__PREAMBLE_MAGIC_AT, "WALP", 4) != 0 ||
        nodedb_get_u16(block + NODEDB_WAL__PREAMBLE_VERSION_AT) != NODEDB_WAL_FORMAT_VERSION ||
        nodedb_get_u32(block + NODEDB_WAL__PREAMBLE_CRC_AT) != nodedb_crc32c(0, block, NODEDB_WAL__PREAMBLE_CRC_AT))
        return false;
    segment->recycled = (nodedb_get_u16(block + NODEDB_WAL__PREAMBLE_FLAGS_AT) & 1) != 0;
    segment->log_id = nodedb_get_u64(block + NODEDB_WAL__PREAMBLE_LOG_ID_AT);
    segment->epoch = nodedb_get_u64(block + NODEDB_WAL__PREAMBLE_EPOCH_AT);
    segment->first_lsn = nodedb_get_u64(block + NODEDB_WAL__PREAMBLE_FIRST_LSN_AT);
    segment->bytes = nodedb_get_u64(block + NODEDB_WAL__PREAMBLE_BYTES_AT);
    segment->block_bytes = nodedb_get_u32(block + NODEDB_WAL__PREAMBLE_BLOCK_BYTES_AT);
    segment->key_id = nodedb_get_u32(block + NODEDB_WAL__PREAMBLE_KEY_ID_AT);
    segment->watermark = nodedb_get_u64(block + NODEDB_WAL__PREAMBLE_WATERMARK_AT);
    segment->tombstones = nodedb_get_u32(block + NODEDB_WAL__PREAMBLE_TOMBSTONES_AT);
    segment->seed = nodedb_wal__seed_of(block);
    return segment->block_bytes >= NODEDB_WAL_PREAMBLE_BYTES &&
           (segment->block_bytes & (segment->block_bytes - 1)) == 0 && segment->bytes > segment->block_bytes &&
           segment->bytes % segment->block_bytes == 0 && segment->first_lsn <= UINT64_MAX / 2 &&
           segment->epoch <= UINT64_MAX / 2; /* below 2^63 neither ever wraps around */
}

/* ---- a record --------------------------------------------------------------------------------------------------- */

/* A record's header; the payload follows at NODEDB_WAL_RECORD_HEADER_BYTES, then zeros up to a multiple of 8. */
enum {
    NODEDB_WAL__RECORD_MAGIC_AT = 0,
    NODEDB_WAL__RECORD_VERSION_AT = 4,
    NODEDB_WAL__RECORD_TYPE_AT = 6,
    NODEDB_WAL__RECORD_LSN_AT = 8,
    NODEDB_WAL__RECORD_WATERMARK_AT = 16,
    NODEDB_WAL__RECORD_TENANT_AT = 24,
    NODEDB_WAL__RECORD_VSHARD_AT = 28,
    NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT = 32,
    NODEDB_WAL__RECORD_FLAGS_AT = 36, /* bit 0 seal; 1 to 15 blocks of the group; 16 to 31 its zero sectors */
    NODEDB_WAL__RECORD_DATABASE_AT = 40,
    NODEDB_WAL__RECORD_EPOCH_AT = 48,
    NODEDB_WAL__RECORD_CRC_AT = 56,        /* of the header before it */
    NODEDB_WAL__RECORD_PAYLOAD_CRC_AT = 60 /* of the payload, then the 4 bytes before it */
};

static void nodedb_wal__encode_parts(unsigned char *at, const nodedb_wal_record *parts, size_t count);

/* Writes a record, but for its checksums. With count > 0 the payload is a transaction of these parts, and
 * record->payload is not read. */
static void nodedb_wal__encode_record(unsigned char *at, const nodedb_wal__segment *segment,
                                      const nodedb_wal_record *record, const nodedb_wal_record *parts, size_t count,
                                      uint64_t lsn, uint64_t watermark, uint32_t flags) {
    size_t end = (size_t)NODEDB_WAL_RECORD_HEADER_BYTES + record->payload_bytes;
    memset(at, 0, NODEDB_WAL_RECORD_HEADER_BYTES);
    nodedb_put_u32(at + NODEDB_WAL__RECORD_MAGIC_AT, NODEDB_WAL_RECORD_MAGIC);
    nodedb_put_u16(at + NODEDB_WAL__RECORD_VERSION_AT, NODEDB_WAL_FORMAT_VERSION);
    nodedb_put_u16(at + NODEDB_WAL__RECORD_TYPE_AT, record->type);
    nodedb_put_u64(at + NODEDB_WAL__RECORD_LSN_AT, lsn);
    nodedb_put_u64(at + NODEDB_WAL__RECORD_WATERMARK_AT, watermark);
    nodedb_put_u32(at + NODEDB_WAL__RECORD_TENANT_AT, record->tenant);
    nodedb_put_u32(at + NODEDB_WAL__RECORD_VSHARD_AT, record->vshard);
    nodedb_put_u32(at + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT, record->payload_bytes);
    nodedb_put_u32(at + NODEDB_WAL__RECORD_FLAGS_AT, flags);
    nodedb_put_u64(at + NODEDB_WAL__RECORD_DATABASE_AT, record->database);
    nodedb_put_u64(at + NODEDB_WAL__RECORD_EPOCH_AT, segment->epoch);
    if (count > 0) nodedb_wal__encode_parts(at + NODEDB_WAL_RECORD_HEADER_BYTES, parts, count);
    else if (record->payload_bytes > 0)
        memcpy(at + NODEDB_WAL_RECORD_HEADER_BYTES, record->payload, record->payload_bytes);
    memset(at + end, 0, nodedb_wal__record_bytes(record->payload_bytes) - end);
}

/* The payload's checksum without its end, the header's checksum: so a change of the header does not need the payload
 * again. */
static uint32_t nodedb_wal__sum_payload(const unsigned char *at, uint32_t seed) {
    return nodedb_crc32c(seed, at + NODEDB_WAL_RECORD_HEADER_BYTES,
                         nodedb_get_u32(at + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT));
}

static uint32_t nodedb_wal__sum_all(const unsigned char *at, uint32_t payload_sum) {
    return nodedb_crc32c(payload_sum, at + NODEDB_WAL__RECORD_CRC_AT, 4);
}

static void nodedb_wal__put_sums(unsigned char *at, uint32_t seed, uint32_t payload_sum) {
    nodedb_put_u32(at + NODEDB_WAL__RECORD_CRC_AT, nodedb_crc32c(seed, at, NODEDB_WAL__RECORD_CRC_AT));
    nodedb_put_u32(at + NODEDB_WAL__RECORD_PAYLOAD_CRC_AT, nodedb_wal__sum_all(at, payload_sum));
}

static bool nodedb_wal__good_header(const unsigned char *at, const nodedb_wal__segment *segment) {
    return nodedb_get_u32(at + NODEDB_WAL__RECORD_MAGIC_AT) == NODEDB_WAL_RECORD_MAGIC &&
           nodedb_get_u16(at + NODEDB_WAL__RECORD_VERSION_AT) == NODEDB_WAL_FORMAT_VERSION &&
           nodedb_get_u64(at + NODEDB_WAL__RECORD_EPOCH_AT) == segment->epoch &&
           nodedb_get_u32(at + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT) <= NODEDB_WAL_MAX_PAYLOAD_BYTES &&
           nodedb_get_u32(at + NODEDB_WAL__RECORD_CRC_AT) ==
               nodedb_crc32c(segment->seed, at, NODEDB_WAL__RECORD_CRC_AT);
}

static bool nodedb_wal__good_payload(const unsigned char *at, const nodedb_wal__segment *segment) {
    return nodedb_get_u32(at + NODEDB_WAL__RECORD_PAYLOAD_CRC_AT) ==
           nodedb_wal__sum_all(at, nodedb_wal__sum_payload(at, segment->seed));
}

/* What stands at a place of a segment. */
typedef enum nodedb_wal__kind {
    NODEDB_WAL__RECORD, /* a whole record of this segment */
    NODEDB_WAL__ZERO,   /* no record begins here: padding, or never written */
    NODEDB_WAL__BAD,    /* something else: torn, damaged, or of an earlier use of the file */
    NODEDB_WAL__MORE    /* a good header, but the record's end is not in view */
} nodedb_wal__kind;

typedef struct nodedb_wal__parsed {
    nodedb_wal__kind kind;
    uint32_t flags; /* RECORD */
    size_t total;   /* RECORD and MORE: bytes that the record takes; else 0 */
} nodedb_wal__parsed;

/* Reads what stands at `offset` of a segment: that place is at `p`, and `available` bytes from there are in view.
 * `trusted`: the payload was checked before. *record is set where it is a RECORD. */
static nodedb_wal__parsed nodedb_wal__parse(const unsigned char *p, size_t available,
                                            const nodedb_wal__segment *segment, uint64_t offset, bool trusted,
                                            nodedb_wal_record *record) {
    nodedb_wal__parsed found = {NODEDB_WAL__BAD, 0, 0};
    size_t to_block = segment->block_bytes - (size_t)(offset % segment->block_bytes); /* padding ends there */
    size_t head = available < NODEDB_WAL_RECORD_HEADER_BYTES ? available : NODEDB_WAL_RECORD_HEADER_BYTES;
    uint32_t payload_bytes;
    if (nodedb_wal__all_zero(p, head < to_block ? head : to_block)) {
        found.kind = NODEDB_WAL__ZERO;
        return found;
    }
    if (available < NODEDB_WAL_RECORD_HEADER_BYTES || !nodedb_wal__good_header(p, segment)) return found;
    payload_bytes = nodedb_get_u32(p + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT);
    found.total = nodedb_wal__record_bytes(payload_bytes);
    if (found.total > available) {
        found.kind = NODEDB_WAL__MORE;
        return found;
    }
    if (!trusted && !nodedb_wal__good_payload(p, segment)) return found;
    found.kind = NODEDB_WAL__RECORD;
    found.flags = nodedb_get_u32(p + NODEDB_WAL__RECORD_FLAGS_AT);
    record->type = nodedb_get_u16(p + NODEDB_WAL__RECORD_TYPE_AT);
    record->lsn = nodedb_get_u64(p + NODEDB_WAL__RECORD_LSN_AT);
    record->watermark = nodedb_get_u64(p + NODEDB_WAL__RECORD_WATERMARK_AT);
    record->tenant = nodedb_get_u32(p + NODEDB_WAL__RECORD_TENANT_AT);
    record->vshard = nodedb_get_u32(p + NODEDB_WAL__RECORD_VSHARD_AT);
    record->payload_bytes = payload_bytes;
    record->database = nodedb_get_u64(p + NODEDB_WAL__RECORD_DATABASE_AT);
    record->payload = p + NODEDB_WAL_RECORD_HEADER_BYTES;
    record->source = NULL;
    return found;
}

/* True if this version knows the type. A reader hands out no other. */
static bool nodedb_wal__known_type(uint16_t type) {
    switch (type & NODEDB_WAL_TYPE_MASK) {
    case NODEDB_WAL_TYPE_NOOP: case NODEDB_WAL_TYPE_PUT: case NODEDB_WAL_TYPE_DELETE: case NODEDB_WAL_TYPE_VECTOR_PUT:
    case NODEDB_WAL_TYPE_VECTOR_DELETE: case NODEDB_WAL_TYPE_VECTOR_PARAMS: case NODEDB_WAL_TYPE_TRANSACTION:
    case NODEDB_WAL_TYPE_CHECKPOINT: case NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE: case NODEDB_WAL_TYPE_LSN_ANCHOR:
        return true;
    default: return (type & NODEDB_WAL_TYPE_MASK) >= NODEDB_WAL_TYPE_USER;
    }
}

static bool nodedb_wal__is_tombstone(uint16_t type) {
    return (type & NODEDB_WAL_TYPE_MASK) == NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE;
}

/* ---- the files of a directory ----------------------------------------------------------------------------------- */

/* What a directory holds, as one listing found it. */
typedef struct nodedb_wal__list {
    nodedb_wal__segment *at; /* the segments, ascending by first LSN */
    size_t count, capacity;
    const nodedb_allocator *allocator;
    bool out_of_memory;
    uint64_t spares[NODEDB_WAL__MAX_LISTED_SPARES]; /* N of the files spare-N.wal */
    size_t spare_count;
    uint64_t spare_next;               /* an N that no such file has */
    uint64_t dead[NODEDB_WAL__MAX_DEAD]; /* E of the files dead-E.wal, as many as fit */
    uint64_t dead_highest;             /* the highest of all */
    uint32_t dead_count;
    bool saw_tmp; /* there is a *.tmp */
} nodedb_wal__list;

/* The first of the last two segments, the only ones that can hold a torn tail. */
static size_t nodedb_wal__last_two(const nodedb_wal__list *list) { return list->count > 2 ? list->count - 2 : 0; }

/* Makes an array of `bytes` each that is full larger: twice, and at least `first`. Returns the new array, with
 * *capacity set, or NULL with everything as it was. */
static void *nodedb_wal__grow(const nodedb_allocator *allocator, void *at, size_t count, size_t *capacity, size_t bytes,
                              size_t first) {
    size_t more = *capacity * 2 < first ? first : *capacity * 2;
    void *grown = nodedb__alloc_zero(allocator, more * bytes, 8);
    if (grown == NULL) return NULL;
    if (count > 0) memcpy(grown, at, count * bytes);
    nodedb__release(allocator, at, *capacity * bytes);
    *capacity = more;
    return grown;
}

/* The names of a log's files. `path` has NODEDB_WAL__PATH_BYTES. */

static void nodedb_wal__segment_path(char *path, const char *dir, uint64_t first_lsn) {
    (void)snprintf(path, NODEDB_WAL__PATH_BYTES, "%s/%020llu.wal", dir, (unsigned long long)first_lsn);
}

static void nodedb_wal__spare_path(char *path, const char *dir, uint64_t number) {
    (void)snprintf(path, NODEDB_WAL__PATH_BYTES, "%s/spare-%llu.wal", dir, (unsigned long long)number);
}

static void nodedb_wal__dead_path(char *path, const char *dir, uint64_t epoch) {
    (void)snprintf(path, NODEDB_WAL__PATH_BYTES, "%s/dead-%llu.wal", dir, (unsigned long long)epoch);
}

/* The spare that is being filled has this name until it is durable. */
static void nodedb_wal__prepare_path(char *path, const char *dir) {
    (void)snprintf(path, NODEDB_WAL__PATH_BYTES, "%s/prepare.tmp", dir);
}

/* "00000000000000000001.wal" -> 1; false for any other name. */
static bool nodedb_wal__parse_name(const char *name, uint64_t *first_lsn) {
    uint64_t value = 0;
    for (int i = 0; i < 20; i++) {
        if (name[i] < '0' || name[i] > '9') return false;
        if (value > (UINT64_MAX - (uint64_t)(name[i] - '0')) / 10) return false;
        value = value * 10 + (uint64_t)(name[i] - '0');
    }
    *first_lsn = value;
    return strcmp(name + 20, ".wal") == 0;
}

static int nodedb_wal__visit_segment(nodedb_wal__list *list, uint64_t first_lsn) {
    if (list->count == list->capacity) {
        nodedb_wal__segment *grown;
        if (list->count >= NODEDB_WAL_MAX_SEGMENTS) {
            list->count++; /* tells the caller that the limit is passed */
            return 1;
        }
        grown = (nodedb_wal__segment *)nodedb_wal__grow(list->allocator, list->at, list->count, &list->capacity,
                                                        sizeof *grown, 16);
        list->out_of_memory = grown == NULL;
        if (grown == NULL) return 1;
        list->at = grown;
    }
    memset(&list->at[list->count], 0, sizeof *list->at);
    list->at[list->count++].first_lsn = first_lsn;
    return 0;
}

static int nodedb_wal__visit_name(void *visitor, const char *name) {
    nodedb_wal__list *list = (nodedb_wal__list *)visitor;
    uint64_t first_lsn;
    size_t length = strlen(name);
    if (strncmp(name, "spare-", 6) == 0) {
        uint64_t number = strtoull(name + 6, NULL, 10);
        if (number >= list->spare_next) list->spare_next = number + 1;
        if (list->spare_count < sizeof list->spares / sizeof *list->spares) list->spares[list->spare_count++] = number;
        return 0;
    }
    if (strncmp(name, "dead-", 5) == 0) {
        uint64_t epoch = strtoull(name + 5, NULL, 10);
        if (epoch > UINT64_MAX / 2) return 0; /* no segment has such an epoch */
        if (epoch > list->dead_highest) list->dead_highest = epoch;
        if (list->dead_count < NODEDB_WAL__MAX_DEAD) list->dead[list->dead_count++] = epoch;
        return 0;
    }
    if (length > 4 && strcmp(name + length - 4, ".tmp") == 0) list->saw_tmp = true;
    return nodedb_wal__parse_name(name, &first_lsn) ? nodedb_wal__visit_segment(list, first_lsn) : 0;
}

static int nodedb_wal__compare_segments(const void *a, const void *b) {
    uint64_t x = ((const nodedb_wal__segment *)a)->first_lsn, y = ((const nodedb_wal__segment *)b)->first_lsn;
    return (x > y) - (x < y);
}

static void nodedb_wal__list_free(nodedb_wal__list *list) {
    nodedb__release(list->allocator, list->at, list->capacity * sizeof *list->at);
    list->at = NULL;
    list->count = list->capacity = 0;
}

/* Reads the preamble of the segment at `path`, whose name says segment->first_lsn. */
static nodedb_status nodedb_wal__read_preamble(const nodedb_io *io, const char *path, nodedb_wal__segment *segment,
                                               nodedb_error *err) {
    unsigned char head[NODEDB_WAL_PREAMBLE_BYTES];
    uint64_t named = segment->first_lsn;
    int64_t size;
    int error, fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd < 0) return nodedb_fail(err, nodedb_io_status(-fd), -fd, "cannot open segment %s", nodedb__path_end(path));
    error = nodedb__read_all(io, fd, head, sizeof head, 0);
    size = io->size(io->ctx, fd);
    (void)io->close(io->ctx, fd);
    if (error != 0 && error != -ENODATA)
        return nodedb_fail(err, NODEDB_ERR_IO, -error, "cannot read the preamble of %s", nodedb__path_end(path));
    if (error != 0 || !nodedb_wal__decode_preamble(head, segment))
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                            "%s: the preamble at offset 0 is damaged or not of this version", nodedb__path_end(path));
    if (segment->first_lsn != named)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s: the preamble says first LSN %llu, the name another",
                            nodedb__path_end(path), (unsigned long long)segment->first_lsn);
    if (size < 0)
        return nodedb_fail(err, NODEDB_ERR_IO, (int)-size, "cannot ask the size of %s", nodedb__path_end(path));
    if ((uint64_t)size < segment->bytes)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s is %lld bytes long, its preamble says %llu",
                            nodedb__path_end(path), (long long)size, (unsigned long long)segment->bytes);
    return NODEDB_OK;
}

/* Reads the preambles of a list, and checks each against the one before it. */
static nodedb_status nodedb_wal__list_preambles(const nodedb_io *io, const char *dir, nodedb_wal__list *list,
                                                nodedb_error *err) {
    char path[NODEDB_WAL__PATH_BYTES];
    for (size_t i = 0; i < list->count; i++) {
        const nodedb_wal__segment *segment = &list->at[i], *before = i > 0 ? &list->at[i - 1] : NULL;
        nodedb_status status;
        nodedb_wal__segment_path(path, dir, segment->first_lsn);
        status = nodedb_wal__read_preamble(io, path, &list->at[i], err);
        if (status != NODEDB_OK) return status;
        if (before == NULL) continue;
        if (segment->log_id != before->log_id)
            return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s belongs to another log than the segments before it",
                               path);
        if (segment->epoch <= before->epoch)
            return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                               "%s is out of order: its epoch is not above the one before", path);
        if (segment->key_id == 0 && before->key_id != 0) /* encryption, once on, stays on */
            return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                               "%s is not encrypted, but the segment before it is: no writer does that",
                               nodedb__path_end(path));
    }
    return NODEDB_OK;
}

static nodedb_status nodedb_wal__list_once(const nodedb_io *io, const nodedb_allocator *allocator, const char *dir,
                                           nodedb_wal__list *list, nodedb_error *err) {
    nodedb_status status;
    int error;
    memset(list, 0, sizeof *list);
    list->allocator = allocator;
    error = io->list(io->ctx, dir, nodedb_wal__visit_name, list);
    if (error < 0)
        return nodedb_fail(err, error == -ENOENT ? NODEDB_ERR_NOT_FOUND : NODEDB_ERR_IO, -error, "cannot list %s",
                           dir);
    if (list->count > 1 && list->count <= list->capacity)
        qsort(list->at, list->count, sizeof *list->at, nodedb_wal__compare_segments);
    if (list->out_of_memory)
        status = nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the list of segments in %s", dir);
    else if (list->count > NODEDB_WAL_MAX_SEGMENTS)
        status = nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "%s holds more than %d segments", dir, NODEDB_WAL_MAX_SEGMENTS);
    else status = nodedb_wal__list_preambles(io, dir, list, err);
    if (status != NODEDB_OK) nodedb_wal__list_free(list);
    return status;
}

/* Lists the segments of `dir`, sorted, with their preambles. A writer may truncate meanwhile, or use a file again under
 * another name. What was listed is then missing or contradicts itself, so it is listed again. */
static nodedb_status nodedb_wal__list_segments(const nodedb_io *io, const nodedb_allocator *allocator, const char *dir,
                                               nodedb_wal__list *list, nodedb_error *err) {
    nodedb_status status;
    nodedb_error own;
    int tries = 0;
    memset(&own, 0, sizeof own);
    do status = nodedb_wal__list_once(io, allocator, dir, list, &own);
    while ((status == NODEDB_ERR_CORRUPT || (status == NODEDB_ERR_IO && own.sys_errno == ENOENT)) &&
           ++tries < NODEDB_WAL__LIST_TRIES);
    if (status != NODEDB_OK && err != NULL) *err = own;
    return status;
}

/* ===================================================================================================================
 * VIEW: how a reader gets at the bytes of a segment
 *
 * A reader goes forward through one segment after the other. It asks for "at least so many bytes from this offset" and
 * gets a pointer. Behind that stands a mapping, a buffer that is filled by pread, or a stream that reads ahead past the
 * page cache. Which one is decided when the segment is opened; if the system refuses it, the reader goes on in another.
 * ================================================================================================================ */

/* ---- what the sections at the end give a reader ----------------------------------------------------------------- */

#define NODEDB_WAL__CHUNK_BYTES ((size_t)1 << 20) /* a buffered reader's window, until it meets a larger record */
#define NODEDB_WAL__FOLLOW_CHUNK_BYTES ((size_t)64 << 10) /* the same, of a reader that follows a log */
#define NODEDB_WAL__STREAM_FROM_BYTES (UINT64_C(4) << 20) /* with less to read, a stream's buffer and ring do not pay */
#define NODEDB_WAL__STREAM_MAX_CHUNKS 32

/* A list of tombstones, see the section TRANSACTIONS AND TOMBSTONES. The writer's is guarded by its lock and ascends by
 * LSN, so those that are not durable come last; a collection may have several until nodedb_wal__tombstones_compact has
 * kept the newest durable one. A reader's holds what the file says, one for each collection, ascending by tenant and
 * collection. */
typedef struct nodedb_wal__tombstones {
    nodedb_wal_tombstone *at;
    size_t count, capacity;
    size_t reserved;      /* places for tombstones that are being appended */
    size_t compact;       /* the first so many are of different collections */
    uint64_t covered_lsn; /* the file holds every tombstone up to this LSN */
    uint32_t in_file;
} nodedb_wal__tombstones;

/* How a stream reads: an io_uring, or what a test puts there.
 *     start    queues one read.
 *     finish   hands over what is queued and, with `wait`, blocks until a read has ended. Returns 1 with that read's
 *     tag
 *              and result (bytes, or -errno); 0 where none has ended (with `wait` too: call again); or -errno where the
 *              ring itself fails. */
typedef struct nodedb_wal__fetch {
    void (*start)(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset, uint32_t tag);
    int (*finish)(void *ctx, bool wait, uint32_t *tag, int *result);
    void *ctx;
} nodedb_wal__fetch;

/* A part of a segment file, read or being read: bytes [from, to), which never cross a multiple of chunk_bytes. */
typedef struct nodedb_wal__chunk {
    size_t segment;
    uint64_t from, to;
    int fd;
    bool closes; /* the last one of its file: fd is closed with it */
    bool done;
    int error; /* when done: 0 or -errno */
} nodedb_wal__chunk;

/* Reads ahead of a reader; the reader's thread uses it. Chunks [first, next) are read or being read. A sequence number
 * modulo `chunks` is a slot of chunk_bytes bytes; the slots stand one behind the other in memory. So chunks that follow
 * each other in a file are one piece of memory, except where the slots start over: see the section READ AHEAD. The next
 * read is at ahead_offset of segment `ahead`; with at_end there is none. */
typedef struct nodedb_wal__stream {
    const char *dir;
    const nodedb_wal__segment *segments;
    size_t count;
    nodedb_allocator allocator;
    nodedb_wal__fetch fetch;
    void *ring;
    size_t chunk_bytes, headroom_bytes; /* multiples of any block; may be set until the first read */
    uint32_t chunks;
    uint32_t reach; /* this many chunks at once: grows from 2 as they are used, so that little is read in vain */
    unsigned char *memory, *slots;
    size_t memory_bytes;
    nodedb_wal__chunk chunk[NODEDB_WAL__STREAM_MAX_CHUNKS];
    uint64_t first, next;
    uint32_t in_flight;
    size_t ahead;
    uint64_t ahead_offset;
    int fd; /* of segment `ahead`, -1: not open */
    bool at_end;
    bool forget;         /* what was read may be old: read again */
    bool skipped;        /* segment `skipped_segment` seemed to end in zeros, and its rest was left out */
    bool zeros_mislead;  /* ... but it did not end there: not to be trusted again */
    size_t skipped_segment;
} nodedb_wal__stream;

/* Called by the reader, and defined in TRANSACTIONS AND TOMBSTONES, READ AHEAD and ENCRYPTION. */
typedef struct nodedb_wal__ahead nodedb_wal__ahead;
static void nodedb_wal__tombstones_free(nodedb_wal__tombstones *t, const nodedb_allocator *allocator);
static nodedb_status nodedb_wal__load_tombstones(const nodedb_io *io, const nodedb_allocator *allocator,
                                                 const char *dir, const nodedb_wal__segment *last,
                                                 nodedb_wal__tombstones *t, nodedb_error *err);
static bool nodedb_wal__is_dropped(const nodedb_wal_reader *r, const nodedb_wal_record *record);
static nodedb_status nodedb_wal__reader_tombstones(nodedb_wal_reader *r, nodedb_error *err);
static int nodedb_wal__stream_view(nodedb_wal__stream *s, size_t index, uint64_t offset, size_t bytes,
                                   const unsigned char **view, size_t *available, uint64_t *bad_offset);
static void nodedb_wal__stream_close(nodedb_wal__stream *s);
static bool nodedb_wal__begin_streaming(nodedb_wal_reader *r, size_t first);
static nodedb_wal__ahead *nodedb_wal__ahead_start(const nodedb_allocator *allocator, const char *dir,
                                                  const nodedb_wal__segment *segments, size_t count, size_t first,
                                                  uint32_t threads);
static void *nodedb_wal__ahead_take(nodedb_wal__ahead *ahead, size_t index, uint64_t *trusted_until);
static void nodedb_wal__ahead_stop(nodedb_wal__ahead *ahead, const nodedb_allocator *allocator);
static nodedb_status nodedb_wal__reader_unlock(nodedb_wal_reader *r, nodedb_error *err);
static nodedb_status nodedb_wal__reader_decrypt(nodedb_wal_reader *r, nodedb_wal_record *record, nodedb_error *err);

/* ---- the state of a reader -------------------------------------------------------------------------------------- */

/* How the bytes of the open segment are reached. CLOSED -> one of the others in reader_enter, and back in reader_leave.
 * STREAMED becomes MAPPED or BUFFERED where streaming turns out to be refused (reader_unstream). */
typedef enum nodedb_wal__way {
    NODEDB_WAL__CLOSED = 0,
    NODEDB_WAL__MAPPED,   /* `map` is the whole segment */
    NODEDB_WAL__BUFFERED, /* pread from `fd` into `buffer`; `window` is in it */
    NODEDB_WAL__STREAMED  /* `window` is in the stream's memory; for a record too large for that, in `buffer` */
} nodedb_wal__way;

/* The open segment as memory. Used by the thread that reads. Unless the segment is mapped, its bytes
 * [window_offset, window_offset + window_bytes) stand at `window`. */
typedef struct nodedb_wal__view {
    nodedb_wal__way way;
    int fd; /* -1: none */
    unsigned char *map;
    uint64_t trusted_until; /* records that begin below it were checked by a thread that reads ahead */
    const unsigned char *window;
    uint64_t window_offset;
    size_t window_bytes;
    uint64_t window_lsn; /* following a log: it was durable up to here before the window was read */
    unsigned char *buffer;
    size_t buffer_capacity;
} nodedb_wal__view;

/* The group that holds the record before the reader's position, as the group's first record describes it. */
typedef struct nodedb_wal__seen_group {
    uint64_t offset, bytes; /* bytes 0: not known */
    uint32_t zeros;         /* how many of its sectors were all zero when it was written */
} nodedb_wal__seen_group;

/* What a reader needs to decrypt. */
typedef struct nodedb_wal__unsealed {
    unsigned char header[2 * NODEDB_WAL__SIGNED_BYTES]; /* the open segment's preamble, then the record's header */
    unsigned char *text;                                /* payload of the last record, decrypted */
    size_t capacity;
} nodedb_wal__unsealed;

/* A reader. One thread at a time uses it. Between calls: if record `expected` is in segment list.at[index], it begins
 * at `position`; the view shows that segment. */
struct nodedb_wal_reader {
    char dir[NODEDB_WAL_MAX_DIR_BYTES + 1];
    nodedb_wal_reader_config config;
    nodedb_io io;
    bool may_map;    /* segments may be mapped ... */
    bool may_stream; /* ... and are streamed, which goes before */
    uint16_t only;   /* hands out records of this type only; 0: all */
    nodedb_wal__list list;
    size_t index;
    nodedb_wal__view view;
    nodedb_wal__stream stream;
    nodedb_wal__ahead *ahead; /* threads that check segments before this one gets there; NULL: none */
    uint64_t position, expected;
    uint64_t deliver_from; /* records below it are read and not handed out */
    nodedb_wal__seen_group group;
    bool sealed;         /* the last record read was a seal of this segment */
    uint64_t sealed_lsn; /* the last seal read */
    bool ended;          /* at the end; a followed log may go on */
    uint64_t reread_lsn; /* the record for which a followed segment was read again */
    uint64_t bad_padding; /* times that padding had changed */
    nodedb_error failure; /* status OK while all is well */
    nodedb_wal_reader_stats stats;
    nodedb_wal__unsealed unsealed;
    uint64_t dropped_below; /* no record from this LSN on is dead; 0: none is */
    nodedb_wal__tombstones tombstones;
};

/* ---- opening a segment, and looking at it ----------------------------------------------------------------------- */

/* An error at a record: adds where it is. Use: return nodedb_wal__at(err, nodedb_fail(err, ...), lsn, offset). */
static nodedb_status nodedb_wal__at(nodedb_error *err, nodedb_status status, uint64_t lsn, uint64_t offset) {
    if (err != NULL) err->lsn = lsn, err->offset = offset;
    return status;
}

/* Hands a failure that was collected to the caller. */
static nodedb_status nodedb_wal__hand_over(nodedb_error *err, const nodedb_error *failure) {
    if (err != NULL) *err = *failure;
    return failure->status;
}

/* True if the errno of an optional system call says that the call is unavailable. Kernels and file systems that lack it
 * answer ENOSYS, EOPNOTSUPP or EINVAL. Sandboxes (seccomp) answer EPERM, EACCES or ENOSYS. What is wrong with the
 * operation itself fails once more in the way that is taken instead, and is reported there. */
static bool nodedb_wal__is_refusal(int error) {
    return error == ENOSYS || error == EOPNOTSUPP || error == EINVAL || error == EPERM || error == EACCES;
}

static void *nodedb_wal__map_segment(const char *path, uint64_t bytes, int *error) {
    void *map = MAP_FAILED;
    struct stat st;
    int fd = nodedb__posix_open(NULL, path, O_RDONLY, 0);
    if (fd < 0) {
        *error = -fd;
        return NULL;
    }
    if (fstat(fd, &st) != 0) *error = errno;
    else if ((uint64_t)st.st_size < bytes || bytes > SIZE_MAX)
        *error = EFBIG; /* shortened by another program: reading it would raise SIGBUS */
    else if ((map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED) *error = errno;
    (void)close(fd);
    return map == MAP_FAILED ? NULL : map;
}

/* Closes the open segment, and tells the kernel that its pages are not needed any more. */
static void nodedb_wal__reader_leave(nodedb_wal_reader *r) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    if (r->view.way == NODEDB_WAL__CLOSED) return;
    if (r->view.way == NODEDB_WAL__MAPPED) {
        char path[NODEDB_WAL__PATH_BYTES];
        int fd;
        (void)madvise(r->view.map, (size_t)segment->bytes, MADV_DONTNEED);
        (void)munmap(r->view.map, (size_t)segment->bytes);
        nodedb_wal__segment_path(path, r->dir, segment->first_lsn);
        fd = nodedb__posix_open(NULL, path, O_RDONLY, 0); /* the hint needs a descriptor; a mapping keeps none */
        if (fd >= 0) {
            (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            (void)close(fd);
        }
        r->stats.hints_dontneed++;
    }
    if (r->view.fd >= 0) (void)r->io.close(r->io.ctx, r->view.fd);
    r->view.map = NULL;
    r->view.fd = -1;
    r->view.window_bytes = 0;
    r->view.trusted_until = 0;
    r->view.way = NODEDB_WAL__CLOSED;
}

/* Maps segment `index`, if that is how it is to be read. OK with way CLOSED: read it in another way. */
static nodedb_status nodedb_wal__reader_map(nodedb_wal_reader *r, const char *path, nodedb_error *err) {
    uint64_t bytes = r->list.at[r->index].bytes;
    int error = 0;
    r->view.map = (unsigned char *)nodedb_wal__map_segment(path, bytes, &error);
    if (r->view.map != NULL) {
        r->view.way = NODEDB_WAL__MAPPED;
        if (madvise(r->view.map, (size_t)bytes, MADV_SEQUENTIAL) == 0) r->stats.hints_sequential++;
    } else if (nodedb_wal__is_refusal(error) || error == ENODEV) {
        nodedb_say(&r->config.logger, NODEDB_LOG_WARNING,
                   "log %s: its files cannot be mapped (%s), so they are read through a buffer; allow mmap, or choose "
                   "NODEDB_WAL_ACCESS_BUFFERED",
                   r->dir, strerror(error));
        r->may_map = false;
    } else if (error != ENOMEM) {
        return nodedb_fail(err, nodedb_io_status(error), error, "cannot map segment %s", path);
    }
    return NODEDB_OK;
}

/* Opens segment `index` and goes to its first record. */
static nodedb_status nodedb_wal__reader_enter(nodedb_wal_reader *r, size_t index, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[index];
    bool growing = r->config.follow != NULL && index + 1 == r->list.count; /* written while it is read: never mapped */
    char path[NODEDB_WAL__PATH_BYTES];
    nodedb_status status = NODEDB_OK;
    nodedb_wal__reader_leave(r);
    r->index = index;
    nodedb_wal__segment_path(path, r->dir, segment->first_lsn);
    if (r->ahead != NULL)
        r->view.map = (unsigned char *)nodedb_wal__ahead_take(r->ahead, index, &r->view.trusted_until);
    if (r->view.map != NULL) {
        r->view.way = NODEDB_WAL__MAPPED;
        r->stats.hints_sequential++;
    } else if (r->may_stream) {
        r->view.way = NODEDB_WAL__STREAMED;
        r->stats.segments_streamed++;
    } else if (r->may_map && !growing) status = nodedb_wal__reader_map(r, path, err);
    if (status != NODEDB_OK) return status;
    if (r->view.way == NODEDB_WAL__CLOSED) {
        /* O_DIRECT, so that what is read is what the log has written, and not an older page of the cache */
        int fd = growing ? r->io.open(r->io.ctx, path, O_RDONLY | O_DIRECT, 0) : -EINVAL;
        if (fd < 0) fd = r->io.open(r->io.ctx, path, O_RDONLY, 0);
        if (fd < 0) return nodedb_fail(err, nodedb_io_status(-fd), -fd, "cannot open segment %s", path);
        r->view.fd = fd;
        r->view.way = NODEDB_WAL__BUFFERED;
    }
    r->position = segment->block_bytes;
    r->expected = segment->first_lsn;
    r->group.bytes = 0;
    r->sealed = false;
    r->stats.segments_opened++;
    return nodedb_wal__reader_unlock(r, err);
}

/* Streaming is refused by this file system, or memory for it is short: goes on in another way, at the same place. */
static nodedb_status nodedb_wal__reader_unstream(nodedb_wal_reader *r, int error, nodedb_error *err) {
    uint64_t position = r->position, expected = r->expected;
    bool sealed = r->sealed;
    nodedb_status status;
    nodedb_say(&r->config.logger, NODEDB_LOG_WARNING,
                "log %s: it cannot be read past the page cache (%s), so it is read through it", r->dir,
                strerror(error));
    nodedb_wal__stream_close(&r->stream);
    r->may_stream = false;
    r->stats.segments_streamed--, r->stats.segments_opened--;
    status = nodedb_wal__reader_enter(r, r->index, err);
    r->position = position, r->expected = expected, r->sealed = sealed;
    return status;
}

/* What is in the window may be older than what is on the disk: the next view reads again. */
static void nodedb_wal__reader_forget(nodedb_wal_reader *r) {
    r->view.window_bytes = 0;
    r->stream.forget = true;
}

/* Puts at least `bytes` bytes from `offset` of a streamed segment into the window. A record that does not fit into the
 * stream leaves the window empty and the segment's file open, for the buffer. */
static nodedb_status nodedb_wal__reader_stream(nodedb_wal_reader *r, uint64_t offset, size_t bytes, nodedb_error *err) {
    uint64_t bad_offset = 0;
    char path[NODEDB_WAL__PATH_BYTES];
    int error = nodedb_wal__stream_view(&r->stream, r->index, offset, bytes, &r->view.window, &r->view.window_bytes,
                                        &bad_offset);
    r->view.window_offset = offset;
    if (error == 0) return NODEDB_OK;
    r->view.window_bytes = 0;
    if (nodedb_wal__is_refusal(-error) || error == -ENOMEM) return nodedb_wal__reader_unstream(r, -error, err);
    nodedb_wal__segment_path(path, r->dir, r->list.at[r->index].first_lsn);
    if (error > 0 && r->view.fd < 0) {
        r->view.fd = r->io.open(r->io.ctx, path, O_RDONLY | O_DIRECT, 0);
        error = r->view.fd < 0 ? r->view.fd : 1;
    }
    if (error > 0) return NODEDB_OK;
    return nodedb_wal__at(err,
                          nodedb_fail(err, NODEDB_ERR_IO, -error, "cannot read %s at offset %llu",
                                      nodedb__path_end(path), (unsigned long long)bad_offset),
                          0, bad_offset);
}

/* O_DIRECT wants offsets, lengths and memory in whole blocks. */
static size_t nodedb_wal__direct_align(const nodedb_wal__segment *segment) {
    return segment->block_bytes > NODEDB_WAL_MIN_BLOCK_BYTES ? segment->block_bytes : NODEDB_WAL_MIN_BLOCK_BYTES;
}

/* Reads at least `bytes` bytes from `offset` into the buffer, which grows as needed. Reads begin and end at blocks. */
static nodedb_status nodedb_wal__reader_fill(nodedb_wal_reader *r, uint64_t offset, size_t bytes, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    size_t align = nodedb_wal__direct_align(segment);
    size_t chunk = r->config.follow != NULL ? NODEDB_WAL__FOLLOW_CHUNK_BYTES : NODEDB_WAL__CHUNK_BYTES;
    uint64_t start = offset / align * align;
    size_t want = (size_t)nodedb_wal__round_up(offset - start + bytes, align);
    int error;
    if (want < chunk) want = (size_t)nodedb_wal__round_up(chunk, align);
    if (want > r->view.buffer_capacity || ((uintptr_t)r->view.buffer & (align - 1)) != 0) {
        nodedb__release(&r->config.allocator, r->view.buffer, r->view.buffer_capacity);
        r->view.buffer_capacity = r->view.window_bytes = 0;
        r->view.buffer = (unsigned char *)nodedb__alloc(&r->config.allocator, want, align);
        if (r->view.buffer == NULL)
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for %zu bytes of %s", want, r->dir);
        r->view.buffer_capacity = want;
    }
    want = r->view.buffer_capacity;
    if (want > segment->bytes - start) want = (size_t)(segment->bytes - start);
    r->view.window_bytes = 0;
    if (r->config.follow != NULL) /* asked before reading: every record up to it will be in the window */
        r->view.window_lsn = nodedb_wal_durable_lsn(r->config.follow);
    error = nodedb__read_all(&r->io, r->view.fd, r->view.buffer, want, start);
    if (error != 0)
        return nodedb_wal__at(err,
                              nodedb_fail(err, NODEDB_ERR_IO, -error,
                                          "cannot read %zu bytes at offset %llu of %s/%020llu.wal", want,
                                          (unsigned long long)start, r->dir, (unsigned long long)segment->first_lsn),
                              0, start);
    r->view.window = r->view.buffer;
    r->view.window_offset = start;
    r->view.window_bytes = want;
    return NODEDB_OK;
}

static bool nodedb_wal__in_window(const nodedb_wal_reader *r, uint64_t offset, size_t bytes) {
    return offset >= r->view.window_offset && offset + bytes <= r->view.window_offset + r->view.window_bytes;
}

/* Shows at least `bytes` bytes (or all up to the segment's end) from `offset` of the open segment: *available of them
 * at *view, until the next view. */
static nodedb_status nodedb_wal__reader_view(nodedb_wal_reader *r, uint64_t offset, size_t bytes,
                                             const unsigned char **view, size_t *available, nodedb_error *err) {
    uint64_t left = r->list.at[r->index].bytes - offset;
    nodedb_status status = NODEDB_OK;
    assert(offset <= r->list.at[r->index].bytes);
    if (bytes > left) bytes = (size_t)left;
    if (r->view.way == NODEDB_WAL__STREAMED && !nodedb_wal__in_window(r, offset, bytes))
        status = nodedb_wal__reader_stream(r, offset, bytes, err); /* may turn to another way */
    if (status != NODEDB_OK) return status;
    if (r->view.way == NODEDB_WAL__MAPPED) {
        *view = r->view.map + offset;
        *available = (size_t)left;
        return NODEDB_OK;
    }
    if (!nodedb_wal__in_window(r, offset, bytes)) status = nodedb_wal__reader_fill(r, offset, bytes, err);
    if (status != NODEDB_OK) return status;
    *view = r->view.window + (offset - r->view.window_offset);
    *available = r->view.window_bytes - (size_t)(offset - r->view.window_offset);
    return NODEDB_OK;
}

/* What stands at `offset` of the open segment? A record is shown whole; a MORE never comes back. */
static nodedb_status nodedb_wal__reader_parse(nodedb_wal_reader *r, uint64_t offset, nodedb_wal__parsed *found,
                                              nodedb_wal_record *record, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    const unsigned char *view;
    size_t available;
    nodedb_status status = nodedb_wal__reader_view(r, offset, NODEDB_WAL_RECORD_HEADER_BYTES, &view, &available, err);
    if (status != NODEDB_OK) return status;
    *found = nodedb_wal__parse(view, available, segment, offset, offset < r->view.trusted_until, record);
    if (found->kind != NODEDB_WAL__MORE) return NODEDB_OK;
    if (found->total > segment->bytes - offset) {
        found->kind = NODEDB_WAL__BAD; /* no record reaches past its segment */
        return NODEDB_OK;
    }
    status = nodedb_wal__reader_view(r, offset, found->total, &view, &available, err);
    if (status == NODEDB_OK) *found = nodedb_wal__parse(view, available, segment, offset, false, record);
    return status;
}

/* ===================================================================================================================
 * TORN TAIL: the end of the log, or damage?
 *
 * A reader is at a place where record N must begin, and no valid record N is there. One of two things has happened:
 *
 *   - The log ends here. A crash interrupted the last groups (a torn tail). No caller was told that they are durable,
 *     so they are dropped, and the log goes on with record N.
 *   - Record N was acknowledged and is damaged. Dropping it would lose data in silence, so the reader reports the LSNs
 *     and the offset, and stops.
 *
 * Section 3 of the manual has the rules, with a picture, and this code has their numbers:
 *
 *   1, 2  nodedb_wal__look_behind            witnesses behind the place in this segment; none behind a seal
 *   2, 3  nodedb_wal__ask_next_segment       the next segment as a witness
 *   4, 5  nodedb_wal__reader_damaged         the sectors: a first sector (a), a group (b), a recycled file (c)
 *   5b    nodedb_wal__group_arrived          ... and nodedb_wal__only_padding: what has changed is no record
 *   5c    nodedb_wal__one_bit_off
 *   6     nodedb_wal__reader_judge           asks them all, in this order
 *
 * A reader may run beside a writer that is filling this very place. So before damage is reported, it looks again a few
 * times; a record that has appeared is read as usual.
 * ================================================================================================================ */

/* What is known of what stands behind the bad spot. */
typedef struct nodedb_wal__evidence {
    uint64_t watermark;    /* the highest of any whole record there: all up to it was acknowledged */
    uint64_t lowest_lsn;   /* of any whole record there; UINT64_MAX: there is none */
    uint64_t last_nonzero; /* offset up to which there are bytes that are not zero */
} nodedb_wal__evidence;

#define NODEDB_WAL__ONE_BIT_BYTES 4096 /* a changed bit is looked for in payloads up to this */
#define NODEDB_WAL__DAMAGE_LOOKS 4     /* looks at a damaged place before it is reported: a writer may be filling it */
#define NODEDB_WAL__LOOK_US 500        /* between two of them */

/* Adds what the open segment has from offset `from` on. A record begins at a multiple of the block, or right behind
 * another one. */
static nodedb_status nodedb_wal__look_behind(nodedb_wal_reader *r, uint64_t from, nodedb_wal__evidence *e,
                                             nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    uint64_t at = from, checked = 0;
    while (at < segment->bytes) {
        uint64_t next = nodedb_wal__round_up(at + 1, segment->block_bytes);
        nodedb_wal__parsed found;
        nodedb_wal_record record;
        nodedb_status status = nodedb_wal__reader_parse(r, at, &found, &record, err);
        if (status != NODEDB_OK) return status;
        if (found.kind == NODEDB_WAL__RECORD) {
            if (record.watermark > e->watermark) e->watermark = record.watermark;
            if (record.lsn < e->lowest_lsn) e->lowest_lsn = record.lsn;
            next = at + found.total;
        }
        /* in a recycled file, what has no header of this segment is of an earlier use */
        if (found.kind != NODEDB_WAL__ZERO && (!segment->recycled || found.total > 0)) e->last_nonzero = next;
        checked += found.total;
        if (checked > 4 * segment->bytes) { /* many false headers, one in another: made by hand, not by a crash */
            e->watermark = UINT64_MAX;
            return NODEDB_OK;
        }
        at = next;
    }
    return NODEDB_OK;
}

/* A record begins at `position`, the start of a block. If its flags say that a group begins with it, remembers that. */
static void nodedb_wal__note_group(nodedb_wal_reader *r, uint32_t flags) {
    uint32_t blocks = flags >> NODEDB_WAL__GROUP_BLOCKS_SHIFT & NODEDB_WAL__GROUP_BLOCKS_MASK;
    if (blocks == 0) return;
    r->group.offset = r->position;
    r->group.bytes = (uint64_t)blocks * r->list.at[r->index].block_bytes;
    r->group.zeros = flags >> NODEDB_WAL__GROUP_ZEROS_SHIFT;
}

/* The bad spot is inside a group whose beginning the reader has not read (a page of a replay began behind it). Finds
 * that beginning, from the segment's first record on. */
static nodedb_status nodedb_wal__find_group(nodedb_wal_reader *r, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    uint64_t bad = r->position;
    nodedb_status status = NODEDB_OK;
    for (r->position = segment->block_bytes; r->position < bad;) {
        nodedb_wal__parsed found;
        nodedb_wal_record record;
        status = nodedb_wal__reader_parse(r, r->position, &found, &record, err);
        if (status != NODEDB_OK || (found.kind != NODEDB_WAL__RECORD && found.kind != NODEDB_WAL__ZERO)) break;
        if (found.kind == NODEDB_WAL__RECORD) {
            if (r->position % segment->block_bytes == 0) nodedb_wal__note_group(r, found.flags);
            r->position += found.total;
        } else r->position = nodedb_wal__round_up(r->position + 1, segment->block_bytes);
    }
    r->position = bad;
    return status;
}

/* True if the header at `p` is that of record `lsn`, but for one changed bit. */
static bool nodedb_wal__header_one_bit_off(const unsigned char *p, const nodedb_wal__segment *segment, uint64_t lsn) {
    unsigned char header[NODEDB_WAL_RECORD_HEADER_BYTES];
    memcpy(header, p, sizeof header);
    for (uint32_t bit = 0; bit < NODEDB_WAL__SIGNED_BYTES * 8; bit++) {
        header[bit / 8] ^= (unsigned char)(1u << bit % 8);
        if (nodedb_wal__good_header(header, segment) && nodedb_get_u64(header + NODEDB_WAL__RECORD_LSN_AT) == lsn)
            return true;
        header[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    return false;
}

/* In a recycled file: is this record `lsn`, certainly written whole and changed since? What the file held before is not
 * known, but a sector that holds a header of this segment is new. So the answer is certain in these cases:
 *   - a header that one changed bit explains, as so much of it is known;
 *   - a good header, and the whole payload lies in the sectors of the header;
 *   - a good header, and one changed bit of the payload that lies there explains the checksum. A checksum is linear: it
 *     is off by what the bit contributes, which depends on the bit's distance from the end only.
 * A bit elsewhere may as well be a stale sector that differs by one bit, so the record counts as torn. */
static bool nodedb_wal__one_bit_off(const unsigned char *p, size_t available, const nodedb_wal__segment *segment,
                                    uint64_t lsn, uint64_t offset) {
    uint32_t bytes, off, by = UINT32_C(0x82F63B78); /* what the last bit of a text contributes to its CRC-32C */
    size_t end, known; /* up to `known` the sectors are new */
    if (available < NODEDB_WAL_RECORD_HEADER_BYTES) return false;
    if (!nodedb_wal__good_header(p, segment)) return nodedb_wal__header_one_bit_off(p, segment, lsn);
    bytes = nodedb_get_u32(p + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT);
    if (nodedb_get_u64(p + NODEDB_WAL__RECORD_LSN_AT) != lsn || bytes > NODEDB_WAL__ONE_BIT_BYTES ||
        available < nodedb_wal__record_bytes(bytes))
        return false;
    off = nodedb_get_u32(p + NODEDB_WAL__RECORD_PAYLOAD_CRC_AT) ^
          nodedb_wal__sum_all(p, nodedb_wal__sum_payload(p, segment->seed));
    if ((off & (off - 1)) == 0) return true; /* a bit of the checksum itself */
    end = (size_t)NODEDB_WAL_RECORD_HEADER_BYTES + bytes;
    known = (size_t)(nodedb_wal__round_up(offset + NODEDB_WAL_RECORD_HEADER_BYTES, NODEDB_WAL__SECTOR_BYTES) - offset);
    if (end <= known) return true;
    for (uint32_t bit = 0; bit < bytes * 8 + 32; bit++) { /* backwards; the first 32 are the header's sum */
        if (bit >= 32 && by == off) return end - 1 - (bit - 32) / 8 < known;
        by = by >> 1 ^ (UINT32_C(0x82F63B78) & (0 - (by & 1)));
    }
    return false;
}

/* *zeros: the sectors of the group at r->group that are all zero, if everything from offset `until` on counts as
 * zero. */
static nodedb_status nodedb_wal__group_zeros(nodedb_wal_reader *r, uint64_t until, uint32_t *zeros,
                                             nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    uint64_t end = r->group.offset + r->group.bytes;
    *zeros = 0;
    for (uint64_t at = r->group.offset; at < end; at += segment->block_bytes) {
        const unsigned char *view;
        size_t available, sector = NODEDB_WAL__SECTOR_BYTES;
        nodedb_status status = nodedb_wal__reader_view(r, at, segment->block_bytes, &view, &available, err);
        if (status != NODEDB_OK) return status;
        for (uint64_t s = 0; s < segment->block_bytes; s += sector) {
            uint64_t asked = at + s >= until ? 0 : until - (at + s);
            *zeros += nodedb_wal__all_zero(view + s, asked < sector ? (size_t)asked : sector);
        }
    }
    return NODEDB_OK;
}

/* Rule 5b. *arrived: the group at r->group has no more zero sectors now than it was written with. */
static nodedb_status nodedb_wal__group_arrived(nodedb_wal_reader *r, bool *arrived, nodedb_error *err) {
    uint64_t end = r->group.offset + r->group.bytes;
    uint32_t zeros;
    nodedb_status status;
    *arrived = false;
    if (end > r->list.at[r->index].bytes || r->group.zeros == NODEDB_WAL__GROUP_ZEROS_MAX) return NODEDB_OK;
    status = nodedb_wal__group_zeros(r, end, &zeros, err);
    *arrived = status == NODEDB_OK && zeros <= r->group.zeros;
    return status;
}

/* True if at most one bit is set in these bytes: they were zero, and one bit has changed since. No header is like that,
 * as the magic alone has more. */
static bool nodedb_wal__one_bit_at_most(const unsigned char *p, size_t bytes) {
    unsigned char bits = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (p[i] == 0) continue;
        if (bits != 0 || (p[i] & (p[i] - 1)) != 0) return false;
        bits = p[i];
    }
    return true;
}

/* Rule 5b, for a group that arrived. *padding: what has changed behind `position` is padding, and no record stands
 * there. The group was written with as many zero sectors as it has if all of its rest is zero, so every sector behind
 * the one of `position` was. And where a header would fit into the rest of that one, nothing is there but one bit. */
static nodedb_status nodedb_wal__only_padding(nodedb_wal_reader *r, bool *padding, nodedb_error *err) {
    uint64_t end = r->group.offset + r->group.bytes;
    size_t rest = (size_t)(nodedb_wal__round_up(r->position, NODEDB_WAL__SECTOR_BYTES) - r->position), available;
    const unsigned char *view;
    uint32_t zeros;
    nodedb_status status;
    *padding = false;
    if (end - r->position >= r->list.at[r->index].block_bytes) return NODEDB_OK; /* more than padding ever is */
    status = nodedb_wal__group_zeros(r, r->position, &zeros, err);
    if (status != NODEDB_OK || zeros != r->group.zeros) return status;
    if (rest < NODEDB_WAL_RECORD_HEADER_BYTES) {
        *padding = true;
        return NODEDB_OK;
    }
    status = nodedb_wal__reader_view(r, r->position, rest, &view, &available, err);
    *padding = status == NODEDB_OK && nodedb_wal__one_bit_at_most(view, rest);
    return status;
}

/* Padding holds no data, so a change in it is no damage to the log: goes on behind it, and says so. */
static void nodedb_wal__pass_padding(nodedb_wal_reader *r) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    r->bad_padding++;
    nodedb_say(&r->config.logger, NODEDB_LOG_WARNING,
               "%s/%020llu.wal: the padding behind record %llu, at offset %llu, has changed since it was written; it "
               "holds no record",
               nodedb__path_end(r->dir), (unsigned long long)segment->first_lsn,
               (unsigned long long)(r->expected - 1), (unsigned long long)r->position);
    r->position = nodedb_wal__round_up(r->position, segment->block_bytes);
}

/* *passed: record `expected` stands whole at the next block, so between here and there is padding. */
static nodedb_status nodedb_wal__found_behind_padding(nodedb_wal_reader *r, bool *passed, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    uint64_t behind = nodedb_wal__round_up(r->position, segment->block_bytes);
    nodedb_wal__parsed found;
    nodedb_wal_record record;
    nodedb_status status;
    *passed = false;
    if (behind == r->position || behind >= segment->bytes) return NODEDB_OK;
    status = nodedb_wal__reader_parse(r, behind, &found, &record, err);
    *passed = status == NODEDB_OK && found.kind == NODEDB_WAL__RECORD && record.lsn == r->expected;
    if (*passed) nodedb_wal__pass_padding(r);
    return status;
}

/* Rule 5. *damaged: the sectors where record `expected` would be were written whole, and have changed since. *padding:
 * the group's padding has changed, and there is no such record. */
static nodedb_status nodedb_wal__reader_damaged(nodedb_wal_reader *r, bool *damaged, bool *padding,
                                                nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    uint64_t start = r->position / NODEDB_WAL__SECTOR_BYTES * NODEDB_WAL__SECTOR_BYTES;
    size_t before = (size_t)(r->position - start); /* of `position` in its sector */
    const unsigned char *view;
    size_t available;
    nodedb_status status = NODEDB_OK;
    *damaged = false;
    if (r->position >= segment->bytes || segment->block_bytes % NODEDB_WAL__SECTOR_BYTES != 0) return NODEDB_OK;
    if (r->group.bytes == 0 && r->position > segment->block_bytes) status = nodedb_wal__find_group(r, err);
    if (status == NODEDB_OK)
        status = nodedb_wal__reader_view(
            r, start, before + NODEDB_WAL_RECORD_HEADER_BYTES + NODEDB_WAL__ONE_BIT_BYTES, &view, &available, err);
    if (status != NODEDB_OK) return status;
    if (r->group.bytes == 0 || r->position >= r->group.offset + r->group.bytes) { /* the first record of a group */
        if (nodedb_wal__one_bit_at_most(view, NODEDB_WAL__SECTOR_BYTES)) return NODEDB_OK;
        if (!nodedb_wal__good_header(view, segment)) { /* not zero any more: the sector was written, so as a whole */
            *damaged =
                !segment->recycled || nodedb_wal__one_bit_off(view, available, segment, r->expected, r->position);
            return NODEDB_OK;
        }
        if (nodedb_get_u64(view + NODEDB_WAL__RECORD_LSN_AT) != r->expected) return NODEDB_OK;
        nodedb_wal__note_group(r, nodedb_get_u32(view + NODEDB_WAL__RECORD_FLAGS_AT));
    }
    if (!segment->recycled) {
        status = nodedb_wal__group_arrived(r, damaged, err);
        if (status == NODEDB_OK && *damaged && r->position > r->group.offset)
            status = nodedb_wal__only_padding(r, padding, err);
        if (*padding) *damaged = false;
        return status;
    }
    *damaged = nodedb_wal__one_bit_off(view + before, available - before, segment, r->expected, r->position);
    return NODEDB_OK;
}

/* *there: record `lsn` is at `offset` now. With `wait` it sleeps a little first, as a writer may be filling the
 * place. */
static nodedb_status nodedb_wal__reader_look_again(nodedb_wal_reader *r, uint64_t offset, uint64_t lsn, bool wait,
                                                   bool *there, nodedb_error *err) {
    nodedb_wal__parsed found;
    nodedb_wal_record record;
    nodedb_status status;
    *there = false;
    if (wait && r->config.io.pread == NULL) (void)usleep(NODEDB_WAL__LOOK_US);
    nodedb_wal__reader_forget(r);
    if (offset >= r->list.at[r->index].bytes) return NODEDB_OK;
    status = nodedb_wal__reader_parse(r, offset, &found, &record, err);
    *there = status == NODEDB_OK && found.kind == NODEDB_WAL__RECORD && record.lsn == lsn;
    return status;
}

/* Rules 2 and 3, for the segment behind the open one: adds what it says about record `expected`. Comes back to the open
 * segment, to the same place. */
static nodedb_status nodedb_wal__ask_next_segment(nodedb_wal_reader *r, nodedb_wal__evidence *e, nodedb_error *err) {
    uint64_t missing = r->expected, offset = r->position, last_nonzero = e->last_nonzero;
    size_t here = r->index;
    const nodedb_wal__segment *next = &r->list.at[here + 1];
    bool sealed = r->sealed;
    nodedb_error why;
    nodedb_status status;
    if (next->watermark > e->watermark) e->watermark = next->watermark;
    if (next->first_lsn < e->lowest_lsn) e->lowest_lsn = next->first_lsn;
    if (next->first_lsn <= missing || sealed || here + 2 < r->list.count) {
        if (e->watermark < missing) e->watermark = missing;
        return NODEDB_OK;
    }
    if (e->watermark >= missing) return NODEDB_OK;
    memset(&why, 0, sizeof why);
    status = nodedb_wal__reader_enter(r, here + 1, &why);
    if (status == NODEDB_OK) status = nodedb_wal__look_behind(r, next->block_bytes, e, &why);
    if (status == NODEDB_ERR_IO && why.sys_errno == ENOENT) status = NODEDB_OK; /* recovery has retired it since */
    if (status == NODEDB_OK) status = nodedb_wal__reader_enter(r, here, &why);
    if (status != NODEDB_OK) return nodedb_wal__hand_over(err, &why);
    r->expected = missing, r->position = offset, r->sealed = sealed;
    e->last_nonzero = last_nonzero; /* torn bytes are counted in the open segment only */
    return NODEDB_OK;
}

/* Says that records are damaged, with no more than is known: which were acknowledged, or else only where. */
static nodedb_status nodedb_wal__say_damaged(nodedb_wal_reader *r, const nodedb_wal__evidence *e, nodedb_error *err) {
    const char *dir = nodedb__path_end(r->dir);
    unsigned long long segment = r->list.at[r->index].first_lsn, missing = r->expected, last = missing;
    unsigned long long at = r->position;
    if (e->lowest_lsn > missing && e->lowest_lsn != UINT64_MAX) last = e->lowest_lsn - 1;
    if (e->watermark < r->expected)
        (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                          "%s/%020llu.wal: what was written at offset %llu, where record %llu would begin, has changed "
                          "since",
                          dir, segment, at, missing);
    else if (e->lowest_lsn < missing)
        (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                          "%s/%020llu.wal: a segment or record behind it has LSN %llu, and %llu was expected at offset "
                          "%llu",
                          dir, segment, (unsigned long long)e->lowest_lsn, missing, at);
    else
        (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                          "%s/%020llu.wal: acknowledged records %llu to %llu cannot be read at offset %llu", dir,
                          segment, missing, last, at);
    return nodedb_wal__at(err, NODEDB_ERR_CORRUPT, r->expected, r->position);
}

/* Record `expected` cannot be read at `position`. Sets `ended`, or fails with CORRUPT. OK with neither: a writer has
 * put the record there meanwhile, or `position` is behind padding that has changed. */
static nodedb_status nodedb_wal__reader_judge(nodedb_wal_reader *r, nodedb_error *err) {
    nodedb_wal__evidence e = {0, UINT64_MAX, 0};
    nodedb_status status = NODEDB_OK;
    bool damaged = false, there = false, padding = false;
    e.last_nonzero = r->position;
    if (!r->sealed) status = nodedb_wal__found_behind_padding(r, &there, err);
    if (status != NODEDB_OK || there) return status;
    if (!r->sealed) status = nodedb_wal__look_behind(r, r->position, &e, err);
    if (status == NODEDB_OK && r->index + 1 < r->list.count) status = nodedb_wal__ask_next_segment(r, &e, err);
    if (status != NODEDB_OK) return status;
    if (r->config.follow != NULL && r->expected <= nodedb_wal_durable_lsn(r->config.follow)) e.watermark = r->expected;
    if (e.watermark < r->expected && !r->sealed) status = nodedb_wal__reader_damaged(r, &damaged, &padding, err);
    if (status == NODEDB_OK && padding) nodedb_wal__pass_padding(r);
    if (status != NODEDB_OK || padding) return status;
    if (e.watermark >= r->expected) damaged = true;
    for (int looks = 0; damaged && looks < NODEDB_WAL__DAMAGE_LOOKS && status == NODEDB_OK && !there; looks++)
        status = nodedb_wal__reader_look_again(r, r->position, r->expected, looks > 0, &there, err);
    if (status != NODEDB_OK || there) return status;
    if (damaged) return nodedb_wal__say_damaged(r, &e, err);
    r->stats.torn_bytes = e.last_nonzero - r->position;
    r->ended = true;
    return NODEDB_OK;
}

/* ===================================================================================================================
 * READER: the next record, replay and verification
 *
 * The reader keeps a place: a segment, a position, and the LSN `expected` that must stand there. One step is: parse
 * what stands there; a record is accepted, padding is skipped, and anything else is judged (TORN TAIL). A record that
 * is accepted is handed out, unless it is a seal, of an unknown optional type, or of a dropped collection.
 * ================================================================================================================ */

/* ---- from one record to the next -------------------------------------------------------------------------------- */

/* A followed log may have new segments: lists them, and stays at the same place. */
static nodedb_status nodedb_wal__reader_refresh(nodedb_wal_reader *r, nodedb_error *err) {
    nodedb_wal__list fresh;
    uint64_t here = r->list.at[r->index].first_lsn;
    nodedb_status status = nodedb_wal__list_segments(&r->io, &r->config.allocator, r->dir, &fresh, err);
    size_t i = 0;
    if (status != NODEDB_OK) return status;
    while (i < fresh.count && fresh.at[i].first_lsn != here) i++;
    if (i == fresh.count) {
        nodedb_wal__list_free(&fresh);
        return nodedb_wal__at(err,
                              nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0,
                                          "%s/%020llu.wal was truncated while it was being followed", r->dir,
                                          (unsigned long long)here),
                              r->expected, 0);
    }
    nodedb_wal__list_free(&r->list);
    r->list = fresh;
    r->index = i;
    return NODEDB_OK;
}

static nodedb_status nodedb_wal__reader_altered(nodedb_wal_reader *r, uint64_t lsn, const char *how,
                                                nodedb_error *err) {
    return nodedb_wal__at(err,
                          nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                                      "%s/%020llu.wal: record %llu at offset %llu was altered: %s",
                                      nodedb__path_end(r->dir), (unsigned long long)r->list.at[r->index].first_lsn,
                                      (unsigned long long)lsn, (unsigned long long)r->position, how),
                          lsn, r->position);
}

/* Encryption, once a segment has it, is in every record. Decrypts the record, if there is a cipher. It also checks the
 * tag of what the caller does not get, a seal or an unknown type, from deliver_from on; but where one type is looked
 * for, only that type. */
static nodedb_status nodedb_wal__reader_unseal(nodedb_wal_reader *r, nodedb_wal_record *record, bool deliver,
                                               nodedb_error *err) {
    bool encrypted = (record->type & NODEDB_WAL_ENCRYPTED) != 0;
    if (encrypted != (r->list.at[r->index].key_id != 0))
        return nodedb_wal__reader_altered(r, record->lsn, encrypted ? "its segment is not encrypted, and it is"
                                                                    : "its segment is encrypted, and it is not", err);
    if (!encrypted) return NODEDB_OK;
    if (record->payload_bytes < NODEDB_WAL_TAG_BYTES)
        return nodedb_wal__reader_altered(r, record->lsn, "it is too short for a tag", err);
    if (r->config.keep_encrypted || r->config.cipher.open == NULL) return NODEDB_OK;
    if (r->only == 0 ? record->lsn < r->deliver_from : !deliver) return NODEDB_OK;
    return nodedb_wal__reader_decrypt(r, record, err);
}

/* Clears *deliver if the caller does not get this record: an unknown type is skipped, a dropped collection is
 * dropped. */
static nodedb_status nodedb_wal__reader_choose(nodedb_wal_reader *r, const nodedb_wal_record *record, bool *deliver,
                                               nodedb_error *err) {
    if (!nodedb_wal__known_type(record->type)) {
        if ((record->type & NODEDB_WAL_REQUIRED) != 0)
            return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "record %llu of %s has the unknown required type %u",
                               (unsigned long long)record->lsn, r->dir,
                               (unsigned)(record->type & NODEDB_WAL_TYPE_MASK));
        *deliver = false;
        r->stats.skipped++;
        return NODEDB_OK;
    }
    if ((record->type & NODEDB_WAL_ENCRYPTED) != 0 && !r->config.keep_encrypted)
        return nodedb_wal__at(err,
                              nodedb_fail(err, NODEDB_ERR_KEY, 0,
                                          "record %llu of %s is encrypted with key %u, and there is no cipher",
                                          (unsigned long long)record->lsn, nodedb__path_end(r->dir),
                                          (unsigned)r->list.at[r->index].key_id),
                              record->lsn, r->position);
    if (nodedb_wal__is_dropped(r, record)) {
        *deliver = false;
        r->stats.dropped++;
    }
    return NODEDB_OK;
}

/* Record `expected` is good: moves behind it. *deliver: the caller gets it. */
static nodedb_status nodedb_wal__reader_accept(nodedb_wal_reader *r, nodedb_wal_record *record,
                                               const nodedb_wal__parsed *found, bool *deliver, nodedb_error *err) {
    nodedb_status status;
    r->sealed = (found->flags & NODEDB_WAL__FLAG_SEAL) != 0;
    if (r->sealed) r->sealed_lsn = record->lsn;
    *deliver = !r->sealed && record->lsn >= r->deliver_from &&
               (r->only == 0 || (record->type & NODEDB_WAL_TYPE_MASK) == r->only);
    status = nodedb_wal__reader_unseal(r, record, *deliver, err);
    if (status == NODEDB_OK && *deliver) status = nodedb_wal__reader_choose(r, record, deliver, err);
    if (status != NODEDB_OK) return status;
    if (r->position % r->list.at[r->index].block_bytes == 0) nodedb_wal__note_group(r, found->flags);
    r->position += found->total;
    r->expected++;
    if (*deliver) r->stats.records++, r->stats.payload_bytes += record->payload_bytes;
    return NODEDB_OK;
}

/* True if there is nothing more to read now. A followed log is read up to its durable LSN, and what was read before
 * that record was durable may hold half of it: it is read again. */
static bool nodedb_wal__reader_at_end(nodedb_wal_reader *r) {
    if (r->config.until_lsn != 0 && r->expected > r->config.until_lsn) return true;
    if (r->config.follow == NULL) return r->ended;
    if (r->expected > nodedb_wal_durable_lsn(r->config.follow)) return true;
    if (r->expected > r->view.window_lsn) r->view.window_bytes = 0;
    return r->ended = false;
}

/* *padding: the rest of the block at `position` is zero, the padding of a group. */
static nodedb_status nodedb_wal__reader_padding(nodedb_wal_reader *r, bool *padding, nodedb_error *err) {
    size_t block_bytes = r->list.at[r->index].block_bytes, available;
    size_t bytes = block_bytes - (size_t)(r->position % block_bytes);
    const unsigned char *view;
    nodedb_status status;
    *padding = false;
    if (bytes == block_bytes) return NODEDB_OK; /* a whole block is none */
    status = nodedb_wal__reader_view(r, r->position, bytes, &view, &available, err);
    if (status == NODEDB_OK) *padding = nodedb_wal__all_zero(view, bytes);
    return status;
}

/* Goes to the next record that the caller gets. AGAIN at the end. */
static nodedb_status nodedb_wal__reader_advance(nodedb_wal_reader *r, nodedb_wal_record *record, nodedb_error *err) {
    while (!nodedb_wal__reader_at_end(r)) {
        nodedb_wal__parsed found = {NODEDB_WAL__BAD, 0, 0};
        nodedb_status status = NODEDB_OK;
        bool deliver = false, padding = false;
        if (r->index + 1 < r->list.count && r->list.at[r->index + 1].first_lsn == r->expected) {
            status = nodedb_wal__reader_enter(r, r->index + 1, err);
            if (status != NODEDB_OK) return status;
            continue;
        }
        if (r->position < r->list.at[r->index].bytes)
            status = nodedb_wal__reader_parse(r, r->position, &found, record, err);
        if (status == NODEDB_OK && found.kind == NODEDB_WAL__ZERO)
            status = nodedb_wal__reader_padding(r, &padding, err);
        if (status != NODEDB_OK) return status;
        if (found.kind == NODEDB_WAL__RECORD && record->lsn == r->expected) {
            record->source = r;
            status = nodedb_wal__reader_accept(r, record, &found, &deliver, err);
        } else if (padding) {
            r->position = nodedb_wal__round_up(r->position, r->list.at[r->index].block_bytes);
        } else if (r->config.follow != NULL && r->reread_lsn != r->expected) {
            r->reread_lsn = r->expected; /* once: what is in the window may be older than what is durable now */
            r->view.window_bytes = 0;
            status = nodedb_wal__reader_refresh(r, err);
        } else status = nodedb_wal__reader_judge(r, err);
        if (status != NODEDB_OK || deliver) return status;
    }
    return NODEDB_ERR_AGAIN;
}

/* ---- open, next, tell, close ------------------------------------------------------------------------------------ */

/* A reader of this config, with no segment open. */
static nodedb_wal_reader *nodedb_wal__reader_alloc(const nodedb_wal_reader_config *config, nodedb_error *err) {
    nodedb_wal_reader *r;
    if (config == NULL || config->dir == NULL || config->dir[0] == 0 ||
        strlen(config->dir) > NODEDB_WAL_MAX_DIR_BYTES) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a log reader needs a directory of 1 to %d bytes",
                          NODEDB_WAL_MAX_DIR_BYTES);
        return NULL;
    }
    r = (nodedb_wal_reader *)nodedb__alloc_zero(&config->allocator, sizeof *r, NODEDB_CACHE_LINE_BYTES);
    if (r == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a reader of %s", config->dir);
        return NULL;
    }
    r->config = *config;
    r->view.fd = r->stream.fd = -1;
    memcpy(r->dir, config->dir, strlen(config->dir) + 1);
    r->config.dir = r->dir;
    r->io = nodedb__io_or_posix(&config->io);
    r->may_map = (config->access == NODEDB_WAL_ACCESS_MAPPED || config->access == NODEDB_WAL_ACCESS_AUTO) &&
                 config->io.pread == NULL && config->io.open == NULL;
    r->deliver_from = config->from_lsn;
    return r;
}

/* Reading failed with `status`. If the open segment was truncated meanwhile, that is the reason: says so instead, with
 * NOT_FOUND. A file is renamed or removed before anybody writes to it again, so a reader that has met bytes of its next
 * use finds its name gone. */
static nodedb_status nodedb_wal__reader_reason(nodedb_wal_reader *r, nodedb_status status, nodedb_error *err) {
    char path[NODEDB_WAL__PATH_BYTES];
    int fd;
    if (status != NODEDB_ERR_CORRUPT && status != NODEDB_ERR_IO) return status;
    nodedb_wal__segment_path(path, r->dir, r->list.at[r->index].first_lsn);
    fd = r->io.open(r->io.ctx, path, O_RDONLY, 0);
    if (fd >= 0) (void)r->io.close(r->io.ctx, fd);
    if (fd != -ENOENT) return status;
    return nodedb_wal__at(err,
                          nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "%s was truncated before it was read",
                                      nodedb__path_end(path)),
                          r->expected, 0);
}

/* Lists the segments. NOT_FOUND where there are none, or from_lsn or until_lsn lies before the oldest record. */
static nodedb_status nodedb_wal__reader_list(nodedb_wal_reader *r, nodedb_error *err) {
    const uint64_t wanted[2] = {r->config.from_lsn, r->config.until_lsn};
    nodedb_status status = nodedb_wal__list_segments(&r->io, &r->config.allocator, r->dir, &r->list, err);
    if (status != NODEDB_OK) return status;
    if (r->list.count == 0) return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "there is no log in %s", r->dir);
    for (int i = 0; i < 2; i++)
        if (wanted[i] != 0 && wanted[i] < r->list.at[0].first_lsn)
            return nodedb_wal__at(err,
                                  nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0,
                                              "record %llu of %s is not there any more: the oldest is %llu",
                                              (unsigned long long)wanted[i], r->dir,
                                              (unsigned long long)r->list.at[0].first_lsn),
                                  r->list.at[0].first_lsn, 0);
    return NODEDB_OK;
}

/* Opens at the segment that holds from_lsn; or, for recovery, at the first of the last two. */
static nodedb_wal_reader *nodedb_wal__reader_new(const nodedb_wal_reader_config *config, bool at_last_two,
                                                 nodedb_error *err) {
    nodedb_wal_reader *r = nodedb_wal__reader_alloc(config, err);
    size_t i = 0;
    if (r == NULL) return NULL;
    if (nodedb_wal__reader_list(r, err) != NODEDB_OK || nodedb_wal__reader_tombstones(r, err) != NODEDB_OK) goto fail;
    while (i + 1 < r->list.count && r->list.at[i + 1].first_lsn <= config->from_lsn) i++;
    if (at_last_two) i = nodedb_wal__last_two(&r->list);
    r->may_stream = nodedb_wal__begin_streaming(r, i);
    if (config->threads > 1 && r->may_map && !r->may_stream && config->follow == NULL &&
        r->list.count - i >= NODEDB_WAL_PARALLEL_FROM_SEGMENTS)
        r->ahead = nodedb_wal__ahead_start(&r->config.allocator, r->dir, r->list.at, r->list.count, i,
                                           config->threads > NODEDB_WAL_MAX_THREADS ? NODEDB_WAL_MAX_THREADS
                                                                                    : config->threads);
    if (nodedb_wal__reader_reason(r, nodedb_wal__reader_enter(r, i, err), err) == NODEDB_OK) return r;
fail:
    nodedb_wal_reader_close(r);
    return NULL;
}

NODEDB_WAL_API nodedb_wal_reader *nodedb_wal_reader_open(const nodedb_wal_reader_config *config, nodedb_error *err) {
    return nodedb_wal__reader_new(config, false, err);
}

NODEDB_WAL_API nodedb_status nodedb_wal_reader_next(nodedb_wal_reader *r, nodedb_wal_record *record,
                                                    nodedb_error *err) {
    nodedb_status status;
    if (r == NULL || record == NULL)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_reader_next needs a reader and a record");
    if (r->failure.status == NODEDB_OK) {
        status = nodedb_wal__reader_advance(r, record, &r->failure);
        if (status == NODEDB_OK) return status;
        if (status == NODEDB_ERR_AGAIN)
            return nodedb_fail(err, status, 0, "the end of the log in %s, after record %llu", r->dir,
                                (unsigned long long)(r->expected - 1));
        (void)nodedb_wal__reader_reason(r, status, &r->failure);
    }
    if (err != NULL) *err = r->failure;
    return r->failure.status;
}

NODEDB_WAL_API void nodedb_wal_reader_tell(const nodedb_wal_reader *r, nodedb_wal_cursor *cursor) {
    cursor->lsn = r->expected;
    cursor->segment_first_lsn = r->list.at[r->index].first_lsn;
    cursor->offset = r->position;
}

NODEDB_WAL_API void nodedb_wal_reader_get_stats(const nodedb_wal_reader *r, nodedb_wal_reader_stats *stats) {
    *stats = r->stats;
}

NODEDB_WAL_API void nodedb_wal_reader_close(nodedb_wal_reader *r) {
    nodedb_allocator allocator;
    if (r == NULL) return;
    allocator = r->config.allocator;
    if (r->list.at != NULL) nodedb_wal__reader_leave(r);
    nodedb_wal__ahead_stop(r->ahead, &allocator);
    nodedb_wal__stream_close(&r->stream);
    nodedb_wal__list_free(&r->list);
    nodedb_wal__tombstones_free(&r->tombstones, &allocator);
    nodedb__release(&allocator, r->view.buffer, r->view.buffer_capacity);
    nodedb__release(&allocator, r->unsealed.text, r->unsealed.capacity);
    nodedb__release(&allocator, r, sizeof *r);
}

/* ---- replay, verify --------------------------------------------------------------------------------------------- */

/* Goes to a place that nodedb_wal_reader_tell gave, if that record still stands there. Otherwise the reader stays where
 * it is, and reads over the records in between. */
static void nodedb_wal__reader_seek(nodedb_wal_reader *r, const nodedb_wal_cursor *cursor) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    nodedb_wal__parsed found;
    nodedb_wal_record record;
    if (cursor->segment_first_lsn != segment->first_lsn || cursor->offset < segment->block_bytes ||
        cursor->offset >= segment->bytes || cursor->offset % 8 != 0)
        return;
    if (nodedb_wal__reader_parse(r, cursor->offset, &found, &record, NULL) != NODEDB_OK) return;
    if (found.kind != NODEDB_WAL__RECORD || record.lsn != cursor->lsn) return;
    r->position = cursor->offset;
    r->expected = cursor->lsn;
    r->group.bytes = 0;
}

/* Hands one record to the callback. */
static nodedb_status nodedb_wal__apply(const nodedb_wal_reader *r, const nodedb_wal_record *record,
                                       nodedb_wal_apply_fn apply, void *ctx, nodedb_error *err) {
    nodedb_status status = apply(ctx, record);
    if (status == NODEDB_OK) return NODEDB_OK;
    return nodedb_wal__at(err,
                          nodedb_fail(err, status, 0, "the callback refused record %llu of %s",
                                      (unsigned long long)record->lsn, r->dir),
                          record->lsn, 0);
}

/* The log has been read to its end. NOT_FOUND if it ends before the record that the replay should begin with. */
static nodedb_status nodedb_wal__replay_end(const nodedb_wal_reader *r, uint64_t from_lsn, nodedb_error *err) {
    uint64_t until = r->config.until_lsn;
    if (from_lsn <= r->expected || (until != 0 && r->expected > until)) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0,
                       "the log in %s ends at record %llu, before record %llu from which it is to be replayed", r->dir,
                       (unsigned long long)(r->expected - 1), (unsigned long long)from_lsn);
}

NODEDB_WAL_API nodedb_status nodedb_wal_replay(const nodedb_wal_reader_config *config, nodedb_wal_apply_fn apply,
                                               void *ctx, nodedb_wal_reader_stats *stats, nodedb_error *err) {
    nodedb_wal_reader_config own;
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error failure;
    nodedb_status status, applied = NODEDB_OK;
    if (config == NULL || apply == NULL)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_replay needs a config and a callback");
    own = *config;
    if (own.threads == 0) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        own.threads = cpus < 1 ? 1 : cpus > 4 ? 4 : (uint32_t)cpus;
    }
    memset(&failure, 0, sizeof failure);
    r = nodedb_wal_reader_open(&own, &failure);
    if (r == NULL) return nodedb_wal__hand_over(err, &failure);
    while ((status = nodedb_wal_reader_next(r, &record, err)) == NODEDB_OK &&
           (applied = nodedb_wal__apply(r, &record, apply, ctx, err)) == NODEDB_OK) {}
    if (stats != NULL) *stats = r->stats;
    if (applied != NODEDB_OK) status = applied;
    else if (status == NODEDB_ERR_AGAIN) status = nodedb_wal__replay_end(r, own.from_lsn, err);
    nodedb_wal_reader_close(r);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_replay_page(const nodedb_wal_reader_config *config, nodedb_wal_cursor *cursor,
                                                    size_t limit, nodedb_wal_apply_fn apply, void *ctx, bool *has_more,
                                                    nodedb_error *err) {
    nodedb_wal_reader_config own;
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error failure;
    nodedb_status status, applied = NODEDB_OK;
    if (config == NULL || cursor == NULL || apply == NULL || has_more == NULL || limit == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                           "nodedb_wal_replay_page needs a config, a cursor, a limit, a callback and has_more");
    *has_more = false;
    own = *config;
    own.threads = 1;
    if (own.access == NODEDB_WAL_ACCESS_AUTO) own.access = NODEDB_WAL_ACCESS_MAPPED;
    if (cursor->lsn != 0) own.from_lsn = cursor->lsn;
    memset(&failure, 0, sizeof failure);
    r = nodedb_wal_reader_open(&own, &failure);
    if (r == NULL) return nodedb_wal__hand_over(err, &failure);
    if (cursor->lsn != 0) nodedb_wal__reader_seek(r, cursor);
    for (size_t n = 0; (status = nodedb_wal_reader_next(r, &record, &failure)) == NODEDB_OK; n++) {
        *has_more = n == limit;
        if (*has_more || (applied = nodedb_wal__apply(r, &record, apply, ctx, &failure)) != NODEDB_OK) break;
        nodedb_wal_reader_tell(r, cursor);
    }
    if (applied != NODEDB_OK) status = applied;
    else if (status == NODEDB_ERR_AGAIN) status = nodedb_wal__replay_end(r, own.from_lsn, &failure);
    nodedb_wal_reader_close(r);
    if (status != NODEDB_OK) (void)nodedb_wal__hand_over(err, &failure);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_verify(const nodedb_wal_reader_config *config, nodedb_wal_report *report,
                                               nodedb_error *err) {
    nodedb_wal_reader_config reading;
    nodedb_wal__tombstones tombstones;
    nodedb_wal_report own;
    nodedb_wal_record record;
    nodedb_error failure;
    nodedb_status status;
    nodedb_wal_reader *r;
    memset(&own, 0, sizeof own);
    memset(&failure, 0, sizeof failure);
    memset(&reading, 0, sizeof reading);
    if (config != NULL) reading = *config;
    reading.keep_encrypted = reading.cipher.open == NULL;
    reading.keep_dropped = true; /* dropped records are checked as well */
    r = nodedb_wal_reader_open(&reading, &failure);
    status = failure.status;
    if (r != NULL) {
        own.segments = r->list.count;
        own.first_lsn = r->list.at[0].first_lsn;
        while ((status = nodedb_wal_reader_next(r, &record, &failure)) == NODEDB_OK)
            own.records++, own.payload_bytes += record.payload_bytes - nodedb_wal__tag_bytes(record.type);
        own.last_lsn = r->expected - 1;
        own.torn_bytes = r->stats.torn_bytes;
        own.sealed = r->sealed_lsn != 0 && r->sealed_lsn + 1 == r->expected && own.torn_bytes == 0;
        if (status == NODEDB_ERR_AGAIN)
            status = nodedb_wal__load_tombstones(&r->io, &r->config.allocator, r->dir, &r->list.at[r->list.count - 1],
                                                 &tombstones, &failure);
        if (status == NODEDB_OK) {
            own.tombstones = tombstones.count;
            own.tombstones_lsn = tombstones.covered_lsn;
            nodedb_wal__tombstones_free(&tombstones, &r->config.allocator);
        }
        nodedb_wal_reader_close(r);
    }
    if (report != NULL) *report = own;
    if (status != NODEDB_OK && err != NULL) *err = failure;
    return status;
}

/* ===================================================================================================================
 * WRITER: from a record to a group, and from a group to the durable LSN
 *
 * Appending copies a record into the open group and gives it an LSN. A group is closed when it is full, when the caller
 * submits it, or when a committer writes it; then it has a place in the current segment and is in flight. Several
 * groups may be in flight. They finish in any order and are retired in order: if N is durable, all before it are.
 *
 *     append --> open group --close--> in flight --finished--> retired: the durable LSN moves, waiters wake
 *
 * One mutex, `lock`, guards it all. It is never held while a group is written or synced.
 * ================================================================================================================ */

/* ---- the state of a writer -------------------------------------------------------------------------------------- */

#define NODEDB_WAL__MAX_LSN ((uint64_t)INT64_MAX - 1) /* the segment behind it begins with 2^63 - 1, its limit */
#define NODEDB_WAL__WRITE_TRIES 3 /* a short or interrupted write is repeated so often; it is idempotent */
#define NODEDB_WAL__TAG_FILL NODEDB_WAL_MAX_GROUPS /* an operation's tag: a group's index, or one of these two */
#define NODEDB_WAL__TAG_FILL_SYNC (NODEDB_WAL_MAX_GROUPS + 1)
#define NODEDB_WAL__MAX_OPS (NODEDB_WAL_MAX_GROUPS + 2)
#define NODEDB_WAL__SPARE_FILE 2 /* the ring's registered files: files[0], files[1], the spare */
#define NODEDB_WAL__REGISTERED_FILES 3
#define NODEDB_WAL__MAX_SPARES 4      /* truncated segments that are kept for use again */
#define NODEDB_WAL__LATENCY_PARTS 8   /* of each power of two in the histogram of commits */
#define NODEDB_WAL__HUGE_PAGE_BYTES ((size_t)2 << 20)

/* One group buffer. It belongs to one group at a time and is used in ring order:
 *
 *     free -> open (appends copy records in) -> closed, in flight -> finished -> retired, free again
 *
 * Guarded by the log's lock, but for `word`; and while the group is in flight, nobody changes its buffer. */
typedef struct nodedb_wal__group {
    unsigned char *buffer; /* its part of groups.memory */
    unsigned char *large;  /* instead of it, for one record larger than a group; NULL: none */
    size_t large_bytes;
    size_t used;
    uint32_t records;
    uint32_t committers; /* threads that want a record of this group durable */
    uint32_t sleepers;   /* of these: those that sleep until `word` changes, and have not taken the lock since */
    uint32_t word;       /* changed under the lock, read without it: the futex that sleepers wait on */
    uint64_t last_lsn, offset, submitted_ns;
    uint32_t slot; /* which of segments.files it goes to */
    uint32_t tries;
    uint32_t first_sum; /* checksum of the first record's payload: that header is completed when the group is closed */
    bool finished;      /* its data is durable; groups before it may not be */
} nodedb_wal__group;

/* One write or sync for an engine. */
typedef struct nodedb_wal__op {
    const void *data; /* NULL: sync only */
    size_t bytes;
    uint64_t offset;
    int fd;
    uint32_t file; /* index of fd among the ring's registered files */
    uint32_t tag;  /* a group's index, NODEDB_WAL__TAG_FILL or NODEDB_WAL__TAG_FILL_SYNC */
} nodedb_wal__op;

typedef struct nodedb_wal__completion {
    uint32_t tag;
    int result;     /* bytes, or -errno */
    bool from_ring; /* the kernel ended an operation of the ring, not a call of ours */
} nodedb_wal__completion;

/* How the log writes. A group's data is durable when its completion is reaped, and when `write` returns 0. Two engines
 * exist, POSIX and io_uring; tests put others here, which fail on demand.
 *     start   begins an operation. Called under the lock.
 *     reap    returns finished operations, at most NODEDB_WAL__MAX_OPS. With `wait` it may let the lock go and sleep
 *             until there is one. One thread at a time.
 *     write   writes now: 0 or -errno. Called without the lock, by several threads at once. */
typedef struct nodedb_wal__engine {
    void (*start)(nodedb_wal *w, const nodedb_wal__op *op);
    uint32_t (*reap)(nodedb_wal *w, bool wait, nodedb_wal__completion *done);
    int (*write)(nodedb_wal *w, const nodedb_wal__op *op);
} nodedb_wal__engine;

/* The life of a spare: NONE -> FILLING (allocated as prepare.tmp, zeros up to `filled`) -> SYNCED -> READY (renamed to
 * spare-N.wal) -> NONE again, when a segment begins in it. A recycled segment goes from NONE to READY at once. An error
 * leads back to NONE from every state. */
typedef enum nodedb_wal__spare_state {
    NODEDB_WAL__SPARE_NONE = 0,
    NODEDB_WAL__SPARE_FILLING,
    NODEDB_WAL__SPARE_SYNCED,
    NODEDB_WAL__SPARE_READY
} nodedb_wal__spare_state;

/* The segment that comes next, while it is prepared. Guarded by the lock. */
typedef struct nodedb_wal__spare {
    nodedb_wal__spare_state state;
    int fd; /* open in every state but NONE */
    uint64_t bytes, filled, number;
    bool busy;     /* FILLING only: the engine has an operation of it in flight */
    bool recycled; /* it was a segment before; false: it is all zero */
    bool refused;  /* NONE only: the disk was full, so it is not tried again before it is needed */
} nodedb_wal__spare;

/* A file spare-N.wal of config.segment_bytes that waits for its turn. */
typedef struct nodedb_wal__pooled {
    uint64_t number;
    bool recycled; /* it was a segment before; false: it is all zero */
} nodedb_wal__pooled;

/* A segment that groups are written to. */
typedef struct nodedb_wal__file {
    nodedb_wal__segment segment;
    int fd; /* -1: none */
    uint32_t in_flight; /* groups on their way to it; while there are any, it stays open */
} nodedb_wal__file;

/* How far the log is. Guarded by the lock, but `durable` is also read without it. Between calls:
 * durable <= last LSN given out = next - 1. */
typedef struct nodedb_wal__lsns {
    uint64_t durable __attribute__((aligned(8))); /* a 32-bit machine reads it in one piece only if it is aligned */
    uint64_t next;
    pthread_cond_t moved; /* `durable` has grown, for threads in nodedb_wal_await */
    uint32_t watchers;    /* those threads */
    bool await_cancelled; /* they do not sleep: nodedb_wal_cancel_await */
    bool wrote;           /* there is a record since the log was opened, so closing it writes a seal */
} nodedb_wal__lsns;

/* The ring of groups. Guarded by the lock. Groups [tail, head) are in flight and group `head` is open; a sequence
 * number modulo config.groups is an index into `at`:
 *
 *       retired      tail            head
 *     ...  3    4  |  5    6    7  |  8  |  free ...
 *                     in flight     open
 *
 * Groups finish in any order, and are retired in order: the durable LSN moves over the finished ones at the tail. */
typedef struct nodedb_wal__groups {
    nodedb_wal__group at[NODEDB_WAL_MAX_GROUPS];
    uint64_t head, tail;
    uint32_t started;     /* of those in flight: begun by engine.start and ended by reaping; the rest have a leader */
    pthread_cond_t space; /* a group was retired */
    uint32_t space_waiters;
    unsigned char *memory; /* all groups' buffers */
    size_t memory_bytes;
} nodedb_wal__groups;

/* What threads in nodedb_wal_commit and nodedb_wal_wait share: see the section COMMIT. Guarded by the lock, but for
 * `awake`. */
typedef struct nodedb_wal__committers {
    uint32_t count;  /* threads that want something durable, in all groups */
    uint32_t crowd;  /* how many there were at once recently */
    uint32_t wake;   /* bit i: wake all sleepers of group i when the lock is let go */
    bool gathering;  /* a leader waits for others to join its group */
    bool awake;      /* one thread polls its word instead of sleeping; cleared without the lock */
    uint32_t gather_skip;    /* groups that go without gathering */
    uint32_t gather_backoff; /* log2 of how many it will be after the next wait in vain */
    uint64_t write_ns; /* what a leader's write takes: a moving average */
} nodedb_wal__committers;

/* Who reaps. From NONE to one of the others when a thread enters the engine's reap, and back when it has dealt with
 * what came out. */
typedef enum nodedb_wal__reaper {
    NODEDB_WAL__REAPER_NONE = 0,
    NODEDB_WAL__REAPER_WAITER, /* a committer, or an append that needs space */
    NODEDB_WAL__REAPER_POLL    /* nodedb_wal_poll: its caller sees what became durable without a signal */
} nodedb_wal__reaper;

/* What stands between the groups and the disk. Guarded by the lock, but for sync_error, which sync_lock guards, and
 * no_dsync. */
typedef struct nodedb_wal__device {
    nodedb_wal__engine engine;
    nodedb_wal__reaper reaper;
    bool poll_missed; /* nodedb_wal_poll found another thread reaping, so that thread signals event_fd at its end */
    bool no_dsync;    /* pwritev2 is refused: leaders use pwrite and fdatasync. An atomic; it only ever becomes true */
    int event_fd;     /* readable when nodedb_wal_poll has something to do */
    pthread_mutex_t sync_lock; /* taken without `lock` or inside it: see nodedb_wal__sync_file */
    int sync_error;            /* the first failed sync of a group, 0: none */
    nodedb_wal__op ops[NODEDB_WAL__MAX_OPS]; /* POSIX: started, and waiting for reap to do them */
    uint32_t op_count;
#if !defined(NODEDB_NO_LIBURING)
    struct io_uring ring;
    bool has_ring;      /* `ring` is set up */
    bool ring_refused;  /* it refused an operation, so what starts from then on is queued in `ops` */
    bool fixed_buffers; /* the groups' buffers are registered with it */
    bool fixed_files;   /* the files are */
    uint32_t in_kernel; /* operations begun and not reaped: buffers and files must outlive them */
#endif
} nodedb_wal__device;

/* The segments of the log. Guarded by the lock. At most two are written at a time: files[current], and the one before
 * it until its groups are done. */
typedef struct nodedb_wal__segments {
    nodedb_wal__file files[2];
    uint32_t current;
    uint64_t write_offset; /* where the open group goes in files[current] */
    uint64_t next_epoch, log_id;
    nodedb_wal__segment *sealed; /* all segments before the current one, oldest first: what truncation works on */
    size_t sealed_count, sealed_capacity;
    uint64_t dead[NODEDB_WAL__MAX_DEAD]; /* epochs of dead-E.wal files, to be removed when a segment is begun */
    uint32_t dead_count;
    bool rollover;           /* the next record begins a segment */
    uint64_t seal_lsn;       /* of the last seal that was appended; 0: none */
    unsigned char *preamble; /* one block, for the preamble that is being written */
    unsigned char header[2 * NODEDB_WAL__SIGNED_BYTES]; /* the current segment's preamble, then a record's header */
} nodedb_wal__segments;

/* Space that is ready for segments to come. Guarded by the lock. */
typedef struct nodedb_wal__spares {
    nodedb_wal__spare next;
    nodedb_wal__pooled pool[NODEDB_WAL__MAX_SPARES]; /* further spare-N.wal files */
    uint32_t pool_count;
    uint64_t next_number; /* N of the next spare-N.wal */
    uint32_t small_left;  /* so many of the next segments are small, as the disk had no room for a whole one */
    bool said_small;
    unsigned char *zeros; /* NODEDB_WAL__FILL_BYTES of them */
} nodedb_wal__spares;

/* A writer. The first part is set by nodedb_wal_open and does not change from then on. `lock` guards the rest, with
 * the exceptions that the structs name: lsns.durable and `failed` are read without it, a group's word too. */
struct nodedb_wal {
    char dir[NODEDB_WAL_MAX_DIR_BYTES + 1];
    char description[160];
    nodedb_wal_config config;
    nodedb_io io;
    uint32_t block_bytes;
    int open_flags; /* O_DIRECT, or 0. Stored under the lock, read without it: an atomic. It may become 0 later */
    int lock_fd, dir_fd;

    pthread_mutex_t lock;
    bool failed; /* nothing is acknowledged any more; it never becomes false again */
    nodedb_error failure;
    nodedb_wal__lsns lsns;
    nodedb_wal__groups groups;
    nodedb_wal__committers committers;
    nodedb_wal__device device;
    nodedb_wal__segments segments;
    nodedb_wal__spares spares;
    nodedb_wal__tombstones tombstones;
    nodedb_wal_stats stats;
    uint64_t latency[64 * NODEDB_WAL__LATENCY_PARTS]; /* commits by power of two of their ns, and eighth of it */
};

static inline nodedb_wal__group *nodedb_wal__group_at(nodedb_wal *w, uint64_t sequence) {
    return &w->groups.at[sequence % w->config.groups];
}

static inline nodedb_wal__group *nodedb_wal__open_group(nodedb_wal *w) {
    return nodedb_wal__group_at(w, w->groups.head);
}

static inline nodedb_wal__file *nodedb_wal__current_file(nodedb_wal *w) {
    return &w->segments.files[w->segments.current];
}

/* The segment before the current one; its fd is -1 where it is not written any more. */
static inline nodedb_wal__file *nodedb_wal__previous_file(nodedb_wal *w) {
    return &w->segments.files[1 - w->segments.current];
}

/* Called before they are defined, in the sections below. */
static void nodedb_wal__reap(nodedb_wal *w, bool wait, nodedb_wal__reaper reaper);
static void nodedb_wal__start_group(nodedb_wal *w, uint32_t index);
static nodedb_status nodedb_wal__submit_locked(nodedb_wal *w, nodedb_error *err);
static bool nodedb_wal__has_ring(const nodedb_wal *w);
static bool nodedb_wal__refused_by_ring(nodedb_wal *w, const nodedb_wal__completion *c);
static void nodedb_wal__leave_ring(nodedb_wal *w);
static void nodedb_wal__signal(nodedb_wal *w);
static void nodedb_wal__register_file(nodedb_wal *w, uint32_t file, int fd);
static void nodedb_wal__wake_group(nodedb_wal *w, uint32_t index);
static void nodedb_wal__unlock(nodedb_wal *w);
static nodedb_status nodedb_wal__spare_failed(nodedb_wal *w, int error, const char *what, nodedb_error *err);
static nodedb_status nodedb_wal__spare_advance(nodedb_wal *w, nodedb_error *err);
static nodedb_status nodedb_wal__spare_or_small(nodedb_wal *w, uint64_t need, uint64_t *bytes, nodedb_error *err);
static nodedb_status nodedb_wal__begin_segment(nodedb_wal *w, nodedb_error *err);
static void nodedb_wal__drop_pooled(nodedb_wal *w);
static bool nodedb_wal__check_parts(const nodedb_wal_record *record, size_t *at, uint16_t *unknown);
static nodedb_status nodedb_wal__outer_record(const nodedb_wal_record *parts, size_t count, nodedb_wal_record *outer,
                                              nodedb_error *err);
static size_t nodedb_wal__tombstones_compact(nodedb_wal *w);
static void nodedb_wal__tombstone_of(const nodedb_wal *w, const nodedb_wal_record *record, nodedb_wal_tombstone *stone);
static nodedb_status nodedb_wal__tombstones_reserve(nodedb_wal *w, const nodedb_wal_record *records, size_t count,
                                                    nodedb_wal_tombstone *stone, size_t *reserved, nodedb_error *err);
static void nodedb_wal__tombstone_add(nodedb_wal *w, const nodedb_wal_tombstone *stone, uint64_t lsn);
static nodedb_status nodedb_wal__write_tombstones(nodedb_wal *w, uint64_t from_lsn, nodedb_error *err);
static nodedb_status nodedb_wal__save_tombstones(nodedb_wal *w, nodedb_error *err);
static nodedb_status nodedb_wal__recover_tombstones(nodedb_wal *w, const nodedb_wal__list *list, nodedb_error *err);
static nodedb_status nodedb_wal__recover_tombstone(nodedb_wal *w, const nodedb_wal_record *record, nodedb_error *err);
static nodedb_status nodedb_wal__seal_preamble(const nodedb_wal_cipher *cipher, const nodedb_wal__segment *segment,
                                               unsigned char *block, nodedb_error *err);
static nodedb_status nodedb_wal__seal_record(const nodedb_wal_cipher *cipher, const nodedb_wal__segment *segment,
                                             unsigned char *header, unsigned char *at, nodedb_error *err);
static nodedb_status nodedb_wal__check_key(const nodedb_wal_cipher *cipher, const char *dir,
                                           const nodedb_wal__segment *segment, const unsigned char *block,
                                           nodedb_error *err);

/* ---- failure ---------------------------------------------------------------------------------------------------- */

static nodedb_status nodedb_wal__failed(nodedb_wal *w, nodedb_error *err) {
    if (err != NULL) *err = w->failure;
    return w->failure.status;
}

/* The log has failed: nothing is acknowledged from here on. Keeps the first reason, and wakes every waiter. */
static nodedb_status nodedb_wal__break(nodedb_wal *w, int error, const char *what, uint64_t offset, nodedb_error *err) {
    if (!w->failed) {
        (void)nodedb_fail(&w->failure, NODEDB_ERR_IO, error,
                          "the log in %s has failed and must be reopened: %s in segment %020llu at offset %llu",
                          nodedb__path_end(w->dir), what,
                          (unsigned long long)nodedb_wal__current_file(w)->segment.first_lsn,
                          (unsigned long long)offset);
        w->failure.offset = offset;
        nodedb__store_release(&w->failed, true);
        nodedb_say(&w->config.logger, NODEDB_LOG_ERROR, "%s", w->failure.message);
        nodedb_wal__signal(w);
    }
    for (uint32_t i = 0; i < w->config.groups; i++) nodedb_wal__wake_group(w, i);
    (void)pthread_cond_broadcast(&w->groups.space);
    (void)pthread_cond_broadcast(&w->lsns.moved);
    return nodedb_wal__failed(w, err);
}

/* ---- append: a record goes into the open group ------------------------------------------------------------------ */

/* Makes room for one record of `total` bytes in the open group, in the current segment; or says why there is none.
 * Preparing a segment may let the lock go, so after each step everything is checked again. */
static nodedb_status nodedb_wal__make_room(nodedb_wal *w, size_t total, nodedb_error *err) {
    uint64_t need = nodedb_wal__round_up(total, w->block_bytes) + w->block_bytes;
    uint64_t segment_bytes = need > w->config.segment_bytes ? need : w->config.segment_bytes;
    nodedb_wal__group *g;
    for (;;) {
        nodedb_wal__file *f = nodedb_wal__current_file(w);
        nodedb_status status;
        bool full;
        g = nodedb_wal__open_group(w);
        full = f->fd < 0 || w->segments.rollover ||
               w->segments.write_offset + nodedb_wal__round_up(g->used + total, w->block_bytes) > f->segment.bytes;
        if (g->records > 0 && (full || g->large != NULL || g->used + total > w->config.group_bytes))
            status = nodedb_wal__submit_locked(w, err);
        else if (!full) break;
        else if (nodedb_wal__previous_file(w)->in_flight > 0)
            status = nodedb_fail(err, NODEDB_ERR_AGAIN, 0, "the segment before the last of %s is still being written",
                                 w->dir);
        else if (w->spares.next.state != NODEDB_WAL__SPARE_READY || w->spares.next.bytes < segment_bytes)
            status = nodedb_wal__spare_or_small(w, need, &segment_bytes, err);
        else status = nodedb_wal__begin_segment(w, err);
        if (status != NODEDB_OK) return status;
    }
    if (total <= w->config.group_bytes) return NODEDB_OK;
    assert(g->records == 0 && g->large == NULL);
    g->large_bytes = (size_t)nodedb_wal__round_up(total, w->block_bytes);
    g->large = (unsigned char *)nodedb__alloc(&w->config.allocator, g->large_bytes, w->block_bytes);
    return g->large != NULL ? NODEDB_OK
                            : nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a record of %zu bytes", total);
}

static nodedb_status nodedb_wal__check_size(const nodedb_wal *w, uint32_t payload_bytes, nodedb_error *err) {
    uint32_t most = NODEDB_WAL_MAX_PAYLOAD_BYTES - (w->config.cipher.seal != NULL ? NODEDB_WAL_TAG_BYTES : 0);
    if (payload_bytes <= most) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "a payload of %u bytes passes the limit of %u",
                        (unsigned)payload_bytes, (unsigned)most);
}

/* Appends one record under the lock. With count > 0 it is a transaction, whose parts become the payload of `record`. */
static nodedb_status nodedb_wal__append_parts(nodedb_wal *w, const nodedb_wal_record *record,
                                              const nodedb_wal_record *parts, size_t count, uint32_t flags,
                                              uint64_t *lsn, nodedb_error *err) {
    const nodedb_wal__segment *segment;
    unsigned char *at;
    size_t total;
    uint32_t sum;
    nodedb_wal__group *g;
    nodedb_status status;
    if (w->failed) return nodedb_wal__failed(w, err);
    status = nodedb_wal__check_size(w, record->payload_bytes, err);
    if (status != NODEDB_OK) return status;
    if (w->lsns.next > NODEDB_WAL__MAX_LSN)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "the log in %s has given out its last LSN",
                           nodedb__path_end(w->dir));
    total = nodedb_wal__record_bytes(record->payload_bytes +
                                     (w->config.cipher.seal != NULL ? NODEDB_WAL_TAG_BYTES : 0));
    status = nodedb_wal__make_room(w, total, err);
    if (status != NODEDB_OK) return status;
    g = nodedb_wal__open_group(w);
    segment = &nodedb_wal__current_file(w)->segment;
    at = (g->large != NULL ? g->large : g->buffer) + g->used;
    if (g->records == 0) g->offset = w->segments.write_offset;
    nodedb_wal__encode_record(at, segment, record, parts, count, w->lsns.next, w->lsns.durable, flags);
    if (w->config.cipher.seal != NULL) {
        status = nodedb_wal__seal_record(&w->config.cipher, segment, w->segments.header, at, err);
        if (status != NODEDB_OK && g->records == 0) { /* as before: an empty group has no large buffer */
            nodedb__release(&w->config.allocator, g->large, g->large_bytes);
            g->large = NULL;
        }
        if (status != NODEDB_OK) return status;
    }
    sum = nodedb_wal__sum_payload(at, segment->seed);
    if (g->records == 0) g->first_sum = sum;
    nodedb_wal__put_sums(at, segment->seed, sum);
    g->used += total;
    g->records++;
    g->last_lsn = w->lsns.next++;
    w->lsns.wrote = true;
    w->stats.records++;
    w->stats.payload_bytes += record->payload_bytes;
    if (lsn != NULL) *lsn = g->last_lsn;
    return NODEDB_OK;
}

/* Appends one record under the lock. If it is a tombstone, `stone` is its entry in the writer's list, for which a place
 * is reserved; on an error the place stays reserved. */
static nodedb_status nodedb_wal__append_reserved(nodedb_wal *w, const nodedb_wal_record *record,
                                                 const nodedb_wal_tombstone *stone, uint32_t flags, uint64_t *lsn,
                                                 nodedb_error *err) {
    uint64_t given = 0;
    nodedb_status status = nodedb_wal__append_parts(w, record, NULL, 0, flags, &given, err);
    if (status != NODEDB_OK) return status;
    if (nodedb_wal__is_tombstone(record->type)) nodedb_wal__tombstone_add(w, stone, given);
    if (lsn != NULL) *lsn = given;
    return NODEDB_OK;
}

/* Appends one record under the lock. A tombstone has its place in the writer's list before it has an LSN. */
static nodedb_status nodedb_wal__append_locked(nodedb_wal *w, const nodedb_wal_record *record, uint32_t flags,
                                               uint64_t *lsn, nodedb_error *err) {
    nodedb_wal_tombstone stone;
    size_t reserved;
    nodedb_status status = nodedb_wal__tombstones_reserve(w, record, 1, &stone, &reserved, err);
    if (status == NODEDB_OK) status = nodedb_wal__append_reserved(w, record, &stone, flags, lsn, err);
    if (status != NODEDB_OK) w->tombstones.reserved -= reserved;
    return status;
}

/* The types that mean something to the log demand something of a payload. */
static nodedb_status nodedb_wal__check_meaning(const nodedb_wal_record *record, nodedb_error *err) {
    size_t at;
    switch (record->type & NODEDB_WAL_TYPE_MASK) {
    case NODEDB_WAL_TYPE_TRANSACTION:
        if (!nodedb_wal__check_parts(record, &at, NULL))
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                                "byte %zu of a transaction's payload is not as it must be: use "
                                "nodedb_wal_append_transaction",
                                at);
        return NODEDB_OK;
    case NODEDB_WAL_TYPE_LSN_ANCHOR:
        if (record->payload_bytes != 8)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "an anchor's payload has 8 bytes, not %u",
                                (unsigned)record->payload_bytes);
        return NODEDB_OK;
    default: return NODEDB_OK;
    }
}

static nodedb_status nodedb_wal__check_record(const nodedb_wal *w, const nodedb_wal_record *record, nodedb_error *err) {
    nodedb_status status;
    if (w == NULL || record == NULL || (record->payload == NULL && record->payload_bytes > 0))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "appending needs a log, and a record with its payload");
    if ((record->type & NODEDB_WAL_ENCRYPTED) != 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "bit 14 of a record's type is reserved for encryption");
    if (!nodedb_wal__known_type(record->type)) /* a reader would skip it, or stop at it */
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "there is no record type %u: the user's begin at %d",
                            (unsigned)(record->type & NODEDB_WAL_TYPE_MASK), NODEDB_WAL_TYPE_USER);
    status = nodedb_wal__check_size(w, record->payload_bytes, err);
    return status != NODEDB_OK ? status : nodedb_wal__check_meaning(record, err);
}

/* ---- the life of a group: closed, started, done, retired -------------------------------------------------------- */

/* Closes the open group: pads it, completes its first header with the group's size and zero sectors, and takes its
 * place in the segment. From here on it is in flight, and the caller has it written. */
static uint32_t nodedb_wal__close_group(nodedb_wal *w) {
    uint32_t index = (uint32_t)(w->groups.head % w->config.groups);
    nodedb_wal__group *g = &w->groups.at[index];
    nodedb_wal__file *f = nodedb_wal__current_file(w);
    size_t padded = (size_t)nodedb_wal__round_up(g->used, w->block_bytes);
    unsigned char *first = g->large != NULL ? g->large : g->buffer;
    uint32_t blocks = (uint32_t)(padded / w->block_bytes), zeros, seal;
    assert(g->records > 0 && w->groups.head + 1 - w->groups.tail < w->config.groups);
    assert(blocks <= NODEDB_WAL__GROUP_BLOCKS_MASK);
    memset(first + g->used, 0, padded - g->used);
    zeros = nodedb_wal__zero_sectors(first, padded);
    if (zeros > NODEDB_WAL__GROUP_ZEROS_MAX) zeros = NODEDB_WAL__GROUP_ZEROS_MAX;
    seal = nodedb_get_u32(first + NODEDB_WAL__RECORD_FLAGS_AT) & NODEDB_WAL__FLAG_SEAL;
    nodedb_put_u32(first + NODEDB_WAL__RECORD_FLAGS_AT,
                   seal | blocks << NODEDB_WAL__GROUP_BLOCKS_SHIFT | zeros << NODEDB_WAL__GROUP_ZEROS_SHIFT);
    nodedb_wal__put_sums(first, f->segment.seed, g->first_sum);
    w->stats.padding_bytes += padded - g->used;
    w->stats.written_bytes += padded;
    w->stats.groups++;
    g->used = padded;
    g->tries = 0;
    g->slot = w->segments.current;
    g->submitted_ns = nodedb_now_ns(&w->config.clock);
    assert(g->offset == w->segments.write_offset && g->offset + padded <= f->segment.bytes);
    w->segments.write_offset += padded;
    f->in_flight++;
    w->groups.head++;
    return index;
}

static nodedb_wal__op nodedb_wal__group_op(const nodedb_wal *w, uint32_t index) {
    const nodedb_wal__group *g = &w->groups.at[index];
    nodedb_wal__op op;
    op.data = g->large != NULL ? g->large : g->buffer;
    op.bytes = g->used;
    op.offset = g->offset;
    op.fd = w->segments.files[g->slot].fd;
    op.file = g->slot;
    op.tag = index;
    return op;
}

static void nodedb_wal__start_group(nodedb_wal *w, uint32_t index) {
    nodedb_wal__op op = nodedb_wal__group_op(w, index);
    w->groups.started++;
    w->device.engine.start(w, &op);
}

static nodedb_status nodedb_wal__submit_locked(nodedb_wal *w, nodedb_error *err) {
    if (w->failed) return nodedb_wal__failed(w, err);
    if (nodedb_wal__open_group(w)->records == 0) return NODEDB_OK;
    if (w->groups.head + 1 - w->groups.tail >= w->config.groups)
        return nodedb_fail(err, NODEDB_ERR_AGAIN, 0, "all %u groups of %s are in flight", w->config.groups, w->dir);
    nodedb_wal__start_group(w, nodedb_wal__close_group(w));
    return NODEDB_OK;
}

static void nodedb_wal__count_latency(nodedb_wal *w, uint64_t ns) {
    uint32_t power = ns < 8 ? 3 : 63u - (uint32_t)__builtin_clzll(ns);
    w->latency[power * NODEDB_WAL__LATENCY_PARTS + (ns < 8 ? 0 : (uint32_t)(ns >> (power - 3)) & 7)]++;
}

static uint64_t nodedb_wal__latency_at(const nodedb_wal *w, double fraction) {
    uint64_t total = 0, seen = 0;
    for (uint32_t i = 0; i < 64 * NODEDB_WAL__LATENCY_PARTS; i++) total += w->latency[i];
    for (uint32_t i = 0; i < 64 * NODEDB_WAL__LATENCY_PARTS; i++) {
        seen += w->latency[i];
        if (total > 0 && (double)seen >= fraction * (double)total) return (UINT64_C(8) + i % 8) << (i / 8 - 3);
    }
    return 0;
}

/* Moves the durable LSN over the finished groups at the tail, in order, and frees them. */
static void nodedb_wal__retire_groups(nodedb_wal *w) {
    uint64_t before = w->groups.tail;
    while (w->groups.tail < w->groups.head) {
        nodedb_wal__group *g = nodedb_wal__group_at(w, w->groups.tail);
        if (!g->finished || w->failed) break;
        assert(g->last_lsn > w->lsns.durable);
        nodedb_wal__count_latency(w, nodedb_now_ns(&w->config.clock) - g->submitted_ns);
        w->segments.files[g->slot].in_flight--;
        nodedb__release(&w->config.allocator, g->large, g->large_bytes);
        g->large = NULL;
        g->used = 0, g->records = 0, g->finished = false;
        nodedb__store_release(&w->lsns.durable, g->last_lsn);
        if (g->sleepers > 0) nodedb_wal__wake_group(w, (uint32_t)(w->groups.tail % w->config.groups));
        w->committers.count -= g->committers;
        g->committers = g->sleepers = 0; /* they leave without the lock */
        w->groups.tail++;
    }
    if (w->groups.space_waiters > 0) (void)pthread_cond_broadcast(&w->groups.space);
    if (w->groups.tail != before && w->lsns.watchers > 0) (void)pthread_cond_broadcast(&w->lsns.moved);
    if (w->groups.tail != before && !(w->device.reaper == NODEDB_WAL__REAPER_POLL && nodedb_wal__has_ring(w)))
        nodedb_wal__signal(w); /* an event loop may wait for what another thread reaped or wrote */
}

/* A group's write has ended. */
static void nodedb_wal__complete_group(nodedb_wal *w, const nodedb_wal__completion *c) {
    nodedb_wal__group *g = &w->groups.at[c->tag];
    w->groups.started--;
    if (c->result == (int)g->used) {
        g->finished = true;
        if (nodedb_wal__has_ring(w)) w->stats.syncs++;
        return;
    }
    /* Nothing in a group is acknowledged yet, so the whole write may be repeated. ECANCELED: the thread that submitted
     * it has ended, and the kernel has dropped what was queued for that thread. */
    if (c->result == -ECANCELED || nodedb_wal__refused_by_ring(w, c) ||
        ((c->result >= 0 || c->result == -EINTR || c->result == -EAGAIN) && ++g->tries < NODEDB_WAL__WRITE_TRIES)) {
        nodedb_wal__start_group(w, c->tag);
        return;
    }
    (void)nodedb_wal__break(w, c->result < 0 ? -c->result : EIO, "writing a group failed", g->offset, NULL);
}

/* A step of filling the next segment has ended. That segment holds nothing yet, so an error costs it alone: a rollover
 * makes another, or reports why it cannot. */
static void nodedb_wal__complete_fill(nodedb_wal *w, const nodedb_wal__completion *c) {
    nodedb_wal__spare *s = &w->spares.next;
    s->busy = false;
    if (c->result >= 0 && c->tag == NODEDB_WAL__TAG_FILL) s->filled += (uint64_t)c->result;
    else if (c->result >= 0) s->state = NODEDB_WAL__SPARE_SYNCED;
    else if (c->result != -EINTR && c->result != -EAGAIN && c->result != -ECANCELED &&
             !nodedb_wal__refused_by_ring(w, c))
        (void)nodedb_wal__spare_failed(w, c->result, "filling it with zeros", NULL);
}

/* Deals with finished operations. Under the lock, with nobody else reaping; lets the lock go while it waits or
 * writes. */
static void nodedb_wal__reap(nodedb_wal *w, bool wait, nodedb_wal__reaper reaper) {
    nodedb_wal__completion done[NODEDB_WAL__MAX_OPS];
    uint32_t n;
    assert(w->device.reaper == NODEDB_WAL__REAPER_NONE);
    w->device.reaper = reaper;
    n = w->device.engine.reap(w, wait, done);
    for (uint32_t i = 0; i < n; i++)
        if (done[i].tag < NODEDB_WAL_MAX_GROUPS) nodedb_wal__complete_group(w, &done[i]);
        else nodedb_wal__complete_fill(w, &done[i]);
    nodedb_wal__retire_groups(w);
    w->device.reaper = NODEDB_WAL__REAPER_NONE;
    if (w->device.poll_missed) nodedb_wal__signal(w);
    w->device.poll_missed = false;
}

/* ===================================================================================================================
 * BACKENDS: POSIX calls and io_uring
 *
 * A committer that leads writes its group itself, with one durable write (`write`). What nodedb_wal_submit sends, and
 * the filling of the next segment, is started and reaped: through io_uring, or, with POSIX, done in `reap`. At the
 * end of either the group is durable. For every optional call that a sandbox, a file system or an old kernel refuses
 * there is another way. The log takes it from then on, and tells the logger once.
 * ================================================================================================================ */

/* True if what starts now goes through io_uring. */
static bool nodedb_wal__has_ring(const nodedb_wal *w) {
#if !defined(NODEDB_NO_LIBURING)
    return w->device.has_ring && !w->device.ring_refused;
#else
    (void)w;
    return false;
#endif
}

/* Starts nothing more through the ring, for good. Safe at any time: what the ring has in flight is reaped from it as
 * before, and it stays open for that until the log is closed. */
static void nodedb_wal__leave_ring(nodedb_wal *w) {
#if !defined(NODEDB_NO_LIBURING)
    w->device.ring_refused = true;
#else
    (void)w;
#endif
}

/* True if the kernel says that the ring does not do such an operation (an old kernel, a restricted ring): repeat it.
 * From the first one on the log uses pwrite and fdatasync, and says so once; those that were in flight with the first
 * come back in the same way. */
static bool nodedb_wal__refused_by_ring(nodedb_wal *w, const nodedb_wal__completion *c) {
    if (!c->from_ring || !nodedb_wal__is_refusal(-c->result)) return false;
    if (nodedb_wal__has_ring(w))
        nodedb_say(&w->config.logger, NODEDB_LOG_WARNING,
                   "log %s: io_uring refuses to write (%s), so pwrite and fdatasync are used; allow its operations, or "
                   "choose NODEDB_WAL_BACKEND_POSIX",
                   w->dir, strerror(-c->result));
    nodedb_wal__leave_ring(w);
    return true;
}

/* Makes nodedb_wal_fd readable; nodedb_wal_poll takes it back. With a ring the kernel does so for each completion. */
static void nodedb_wal__signal(nodedb_wal *w) {
    uint64_t one = 1;
    ssize_t n = write(w->device.event_fd, &one, sizeof one);
    (void)n; /* it can only fail when it is readable already */
}

/* ---- POSIX ------------------------------------------------------------------------------------------------------ */

/* What was started waits in `ops`. Reaping writes all of it, then syncs each file once. */
static void nodedb_wal__posix_start(nodedb_wal *w, const nodedb_wal__op *op) {
    assert(w->device.op_count < NODEDB_WAL__MAX_OPS);
    w->device.ops[w->device.op_count++] = *op;
    if (w->device.op_count == 1) nodedb_wal__signal(w);
}

/* Makes the groups in a file durable. Linux reports a write that failed in the background once for each descriptor, to
 * the first thread that syncs. So one thread syncs at a time, and from an error on every sync fails. */
static int nodedb_wal__sync_file(nodedb_wal *w, int fd) {
    int error;
    (void)pthread_mutex_lock(&w->device.sync_lock);
    if (w->device.sync_error == 0) w->device.sync_error = w->io.sync(w->io.ctx, fd);
    error = w->device.sync_error;
    (void)pthread_mutex_unlock(&w->device.sync_lock);
    return error;
}

static uint32_t nodedb_wal__posix_reap(nodedb_wal *w, bool wait, nodedb_wal__completion *done) {
    nodedb_wal__op ops[NODEDB_WAL__MAX_OPS];
    uint32_t i, j, count = w->device.op_count;
    uint64_t syncs = 0;
    (void)wait; /* reaping is doing, so there is nothing to wait for */
    if (count == 0) return 0;
    memcpy(ops, w->device.ops, count * sizeof *ops);
    w->device.op_count = 0;
    nodedb_wal__unlock(w);
    for (i = 0; i < count; i++) {
        int error = 0;
        done[i].tag = ops[i].tag;
        done[i].result = (int)ops[i].bytes;
        done[i].from_ring = false;
        if (ops[i].data != NULL)
            error = nodedb__write_all(&w->io, ops[i].fd, ops[i].data, ops[i].bytes, ops[i].offset);
        if (error != 0) done[i].result = error;
    }
    for (i = 0; i < count; i++) {
        int error;
        if (ops[i].tag == NODEDB_WAL__TAG_FILL) continue; /* synced once, at the end */
        for (j = 0; j < i && (ops[j].fd != ops[i].fd || ops[j].tag == NODEDB_WAL__TAG_FILL); j++) {}
        if (j < i) continue;
        error = ops[i].tag == NODEDB_WAL__TAG_FILL_SYNC ? w->io.sync(w->io.ctx, ops[i].fd)
                                                        : nodedb_wal__sync_file(w, ops[i].fd);
        syncs++;
        for (j = i; error != 0 && j < count; j++)
            if (ops[j].fd == ops[i].fd && done[j].result >= 0) done[j].result = error;
    }
    (void)pthread_mutex_lock(&w->lock);
    w->stats.syncs += syncs;
    return count;
}

#if defined(RWF_DSYNC)
/* Writes past the page cache and makes it durable in one call: with one command, on a disk that can. 0, or -errno. */
static int nodedb_wal__write_dsync(const nodedb_wal__op *op) {
    struct iovec part;
    uint64_t offset = op->offset;
    part.iov_base = (void *)(uintptr_t)op->data, part.iov_len = op->bytes;
    while (part.iov_len > 0) {
        ssize_t n = pwritev2(op->fd, &part, 1, (off_t)offset, RWF_DSYNC);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EIO;
        part.iov_base = (char *)part.iov_base + n, part.iov_len -= (size_t)n, offset += (uint64_t)n;
    }
    return 0;
}
#endif

/* One durable write. pwritev2 is newer than the other calls (Linux 4.7), and some sandboxes refuse it: then, for good,
 * pwrite and fdatasync, which write the whole group once more. */
static int nodedb_wal__posix_write(nodedb_wal *w, const nodedb_wal__op *op) {
    int error;
#if defined(RWF_DSYNC)
    if (nodedb__load_relaxed(&w->open_flags) != 0 && w->config.io.pwrite == NULL && w->config.io.sync == NULL &&
        !nodedb__load_relaxed(&w->device.no_dsync)) {
        error = nodedb_wal__write_dsync(op);
        if (!nodedb_wal__is_refusal(-error)) return error;
        if (!__atomic_exchange_n(&w->device.no_dsync, true, __ATOMIC_RELAXED)) /* the first of several leaders */
            nodedb_say(&w->config.logger, NODEDB_LOG_WARNING,
                       "log %s: pwritev2 with RWF_DSYNC is refused (%s), so pwrite and fdatasync are used; allow "
                       "pwritev2 (seccomp) for speed",
                       w->dir, strerror(-error));
    }
#endif
    error = nodedb__write_all(&w->io, op->fd, op->data, op->bytes, op->offset);
    return error != 0 ? error : nodedb_wal__sync_file(w, op->fd);
}

static const nodedb_wal__engine nodedb_wal__posix = {nodedb_wal__posix_start, nodedb_wal__posix_reap,
                                                      nodedb_wal__posix_write};

/* ---- io_uring --------------------------------------------------------------------------------------------------- */

#if !defined(NODEDB_NO_LIBURING)
static void nodedb_wal__uring_start(nodedb_wal *w, const nodedb_wal__op *op) {
    int fd = w->device.fixed_files ? (int)op->file : op->fd;
    struct io_uring_sqe *sqe;
    if (w->device.ring_refused) {
        nodedb_wal__posix_start(w, op);
        return;
    }
    sqe = io_uring_get_sqe(&w->device.ring);
    assert(sqe != NULL); /* the ring has room for every tag at once */
    if (op->data == NULL) io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else if (w->device.fixed_buffers && op->tag < NODEDB_WAL_MAX_GROUPS &&
             op->data == (void *)w->groups.at[op->tag].buffer)
        io_uring_prep_write_fixed(sqe, fd, op->data, (unsigned)op->bytes, op->offset, (int)op->tag);
    else io_uring_prep_write(sqe, fd, op->data, (unsigned)op->bytes, op->offset);
    if (op->data != NULL && op->tag < NODEDB_WAL_MAX_GROUPS) sqe->rw_flags = RWF_DSYNC;
    if (w->device.fixed_files) sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = op->tag;
    w->device.in_kernel++;
    if (io_uring_submit(&w->device.ring) < 0)
        nodedb_wal__signal(w); /* the kernel is short of memory: it stays queued, and reap submits it */
}

/* Hands over what a submit could not. False: nothing is in the kernel that a wait could end with. */
static bool nodedb_wal__submit_rest(nodedb_wal *w) {
    int result = 0;
    if (io_uring_sq_ready(&w->device.ring) > 0) result = io_uring_submit(&w->device.ring);
    if (result < 0 && result != -EAGAIN && result != -EBUSY && result != -ENOMEM && result != -EINTR)
        (void)nodedb_wal__break(w, -result, "io_uring_enter failed", w->segments.write_offset, NULL);
    return w->device.in_kernel > io_uring_sq_ready(&w->device.ring);
}

static uint32_t nodedb_wal__uring_take(nodedb_wal *w, bool wait, nodedb_wal__completion *done) {
    struct io_uring_cqe *cqe[NODEDB_WAL__MAX_OPS];
    uint32_t i, n;
    if (wait) {
        int error;
        do error = io_uring_wait_cqe(&w->device.ring, &cqe[0]);
        while (error == -EINTR);
    }
    n = io_uring_peek_batch_cqe(&w->device.ring, cqe, NODEDB_WAL__MAX_OPS);
    for (i = 0; i < n; i++) {
        done[i].tag = (uint32_t)cqe[i]->user_data;
        done[i].result = cqe[i]->res;
        done[i].from_ring = true;
    }
    io_uring_cq_advance(&w->device.ring, n);
    return n;
}

static uint32_t nodedb_wal__uring_reap(nodedb_wal *w, bool wait, nodedb_wal__completion *done) {
    bool any;
    uint32_t n;
    if (w->device.op_count > 0) return nodedb_wal__posix_reap(w, wait, done); /* what the refused ring did not take */
    any = nodedb_wal__submit_rest(w);
    if (io_uring_sq_ready(&w->device.ring) > 0) nodedb_wal__signal(w); /* an event loop must come again */
    if (wait) nodedb_wal__unlock(w);
    if (wait && !any) (void)sched_yield(); /* the kernel is short of memory: try again */
    n = nodedb_wal__uring_take(w, wait && any, done);
    if (wait) (void)pthread_mutex_lock(&w->lock);
    assert(n <= w->device.in_kernel);
    w->device.in_kernel -= n;
    return n;
}

static const nodedb_wal__engine nodedb_wal__uring = {nodedb_wal__uring_start, nodedb_wal__uring_reap,
                                                     nodedb_wal__posix_write};
#endif

static void nodedb_wal__open_backend(nodedb_wal *w) {
    w->device.engine = nodedb_wal__posix;
#if !defined(NODEDB_NO_LIBURING)
    if (w->open_flags != 0 && w->config.backend != NODEDB_WAL_BACKEND_POSIX && w->config.io.pwrite == NULL &&
        w->config.io.open == NULL) { /* cached writes do not report their own errors: see sync_file */
        int error = io_uring_queue_init(32, &w->device.ring, IORING_SETUP_CLAMP);
        struct iovec buffers[NODEDB_WAL_MAX_GROUPS];
        int none[NODEDB_WAL__REGISTERED_FILES] = {-1, -1, -1};
        uint32_t i;
        if (error == 0) {
            w->device.has_ring = true;
            for (i = 0; i < w->config.groups; i++)
                buffers[i].iov_base = w->groups.at[i].buffer, buffers[i].iov_len = w->config.group_bytes;
            w->device.fixed_buffers = io_uring_register_buffers(&w->device.ring, buffers, w->config.groups) ==
                            0; /* else RLIMIT_MEMLOCK: plain writes do */
            w->device.fixed_files = io_uring_register_files(&w->device.ring, none, NODEDB_WAL__REGISTERED_FILES) == 0;
            error = io_uring_register_eventfd(&w->device.ring, w->device.event_fd);
            if (error == 0) {
                w->device.engine = nodedb_wal__uring;
                return;
            }
            io_uring_queue_exit(&w->device.ring);
            w->device.has_ring = w->device.fixed_buffers = w->device.fixed_files = false;
        }
        nodedb_say(
            &w->config.logger, NODEDB_LOG_WARNING,
            "log %s: io_uring is refused (%s), so pwrite and fdatasync are used; allow the io_uring system calls "
            "(seccomp, kernel.io_uring_disabled) for speed",
            w->dir, strerror(-error));
    }
#else
    if (w->config.backend == NODEDB_WAL_BACKEND_AUTO)
        nodedb_say(&w->config.logger, NODEDB_LOG_INFO,
                    "log %s: built without liburing, so pwrite and fdatasync are used", w->dir);
#endif
}

/* Opening: gives back a ring that was refused meanwhile. Nothing has been started yet. */
static void nodedb_wal__close_refused_ring(nodedb_wal *w) {
#if !defined(NODEDB_NO_LIBURING)
    if (!w->device.has_ring || !w->device.ring_refused) return;
    w->device.engine = nodedb_wal__posix;
    io_uring_queue_exit(&w->device.ring);
    w->device.has_ring = w->device.fixed_buffers = w->device.fixed_files = false;
#else
    (void)w;
#endif
}

/* The ring's registered file `file` is `fd` from now on, or none (-1). If that is refused, the ring is given
 * descriptors instead. */
static void nodedb_wal__register_file(nodedb_wal *w, uint32_t file, int fd) {
#if !defined(NODEDB_NO_LIBURING)
    if (w->device.fixed_files && io_uring_register_files_update(&w->device.ring, file, &fd, 1) != 1)
        w->device.fixed_files = false;
#else
    (void)w, (void)file, (void)fd;
#endif
}

/* ===================================================================================================================
 * COMMIT: threads that wait until their records are durable
 *
 * A thread whose record is in the open group may lead it: it closes the group and writes it itself, without the lock,
 * while others fill the next one. The others sleep on their group's word (a futex), and leave without the lock when
 * it is durable. Why not through the ring: its completion runs in the thread that submitted it, and with 64 threads
 * on two cores that thread waits for its turn: a third of the commits a second.
 *
 * A device is kept busy best by few large groups. So the first leader gathers: it waits a little for committers that
 * have just been served and will be back at once. A second group goes to the device only when it is large.
 *
 * No sleeper is left behind. Where a thread releases the lock it calls nodedb_wal__unlock, which asks: is there a
 * sleeper whose group nobody leads, or operations that nobody reaps? Then it wakes one sleeper, who does it. A sleeper
 * reads its word under the lock, and the futex returns at once if the word has changed since. Two releases do not ask.
 * A wait on a condition: that thread has changed nothing since it took the lock or waits because another one leads or
 * reaps, and that one ends in nodedb_wal__unlock. And nodedb_wal_close, when no other thread is there.
 * ================================================================================================================ */

#define NODEDB_WAL__MAX_LEADERS 3              /* groups that blocking committers keep at the device at once */
#define NODEDB_WAL__FULL_COMMITTERS 16         /* a group for so many need not wait for more of them */
#define NODEDB_WAL__GATHER_NS UINT64_C(500000) /* a leader waits so long for others at most ... */
#define NODEDB_WAL__GATHER_TURNS 1024          /* ... and gives way so often */
#define NODEDB_WAL__GATHER_BACKOFF 6           /* after waits in vain, up to 2^6 groups go without one */
#define NODEDB_WAL__MAX_AWAIT_NS (UINT64_C(1000000000) * 3600 * 24) /* so that no sum overflows */

static void nodedb_wal__futex(uint32_t *word, int operation, uint32_t value) {
#if defined(SYS_futex)
    (void)syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
#else
    (void)syscall(SYS_futex_time64, word, operation, value, NULL, NULL, 0);
#endif
}

/* All who sleep on this group's word will be woken when the lock is let go. */
static void nodedb_wal__wake_group(nodedb_wal *w, uint32_t index) {
    nodedb__store_release(&w->groups.at[index].word, w->groups.at[index].word + 1);
    w->committers.wake |= UINT32_C(1) << index;
}

/* How many committers the open group should have before a second group goes: all, or enough of them. */
static uint32_t nodedb_wal__full_group(const nodedb_wal *w) {
    uint32_t share = w->committers.crowd / NODEDB_WAL__MAX_LEADERS;
    if (share < NODEDB_WAL__FULL_COMMITTERS) share = NODEDB_WAL__FULL_COMMITTERS;
    return share < w->committers.crowd ? share : w->committers.crowd;
}

/* True if a thread of the open group may write it now. The first group in flight goes at once; another only when it
 * is large. */
static bool nodedb_wal__may_lead(nodedb_wal *w) {
    const nodedb_wal__group *g = nodedb_wal__open_group(w);
    uint64_t in_flight = w->groups.head - w->groups.tail;
    if (w->failed || w->committers.gathering || g->records == 0 || in_flight + 1 >= w->config.groups) return false;
    if (in_flight == 0) return true;
    return in_flight < NODEDB_WAL__MAX_LEADERS && g->committers >= NODEDB_WAL__FULL_COMMITTERS &&
           g->committers >= nodedb_wal__full_group(w);
}

/* Lets the lock go, and wakes who must be woken: those whose group is durable, and one sleeper that can take over where
 * nobody leads or reaps. That one takes the lock next, or another thread does and ends here as well. */
static void nodedb_wal__unlock(nodedb_wal *w) {
    uint32_t wake = w->committers.wake;
    uint32_t *one = NULL;
    uint64_t s = w->groups.head;
    bool reap = w->device.reaper == NODEDB_WAL__REAPER_NONE && w->groups.started > 0;
    if (reap)
        for (s = w->groups.tail; s < w->groups.head && nodedb_wal__group_at(w, s)->sleepers == 0; s++) {}
    if ((reap || nodedb_wal__may_lead(w)) && nodedb_wal__group_at(w, s)->sleepers > 0) {
        one = &nodedb_wal__group_at(w, s)->word;
        nodedb__store_release(one, *one + 1);
    }
    if (reap && w->groups.space_waiters > 0) (void)pthread_cond_signal(&w->groups.space);
    w->committers.wake = 0;
    (void)pthread_mutex_unlock(&w->lock);
    if (one != NULL) nodedb_wal__futex(one, FUTEX_WAKE_PRIVATE, 1);
    for (uint32_t i = 0; wake != 0; i++, wake >>= 1)
        if ((wake & 1) != 0) nodedb_wal__futex(&w->groups.at[i].word, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

/* Waits, if that has paid recently, until the usual crowd of committers is in the open group; never longer than a write
 * takes. Lets the lock go meanwhile. */
static void nodedb_wal__gather(nodedb_wal *w) {
    uint64_t seq = w->groups.head, start;
    const nodedb_wal__group *g = nodedb_wal__group_at(w, seq);
    uint32_t target = nodedb_wal__full_group(w), turns;
    if (g->committers >= target) return;
    if (w->committers.gather_skip > 0) {
        w->committers.gather_skip--;
        return;
    }
    w->committers.gathering = true;
    start = nodedb_now_ns(NULL);
    for (turns = 0; turns < NODEDB_WAL__GATHER_TURNS; turns++) {
        uint64_t waited;
        nodedb_wal__unlock(w);
        (void)sched_yield();
        (void)pthread_mutex_lock(&w->lock);
        waited = nodedb_now_ns(NULL) - start;
        if (w->failed || w->groups.head != seq || g->committers >= target || waited > w->committers.write_ns ||
            waited > NODEDB_WAL__GATHER_NS)
            break;
    }
    w->committers.gathering = false;
    if (w->groups.head != seq || g->committers >= target) {
        w->committers.gather_backoff = 0;
        return;
    }
    w->committers.crowd -= (w->committers.crowd + 7) / 8;
    w->committers.gather_skip = (UINT32_C(1) << w->committers.gather_backoff) - 1;
    if (w->committers.gather_backoff < NODEDB_WAL__GATHER_BACKOFF) w->committers.gather_backoff++;
}

/* Closes the open group and writes it on this thread, without the lock. */
static void nodedb_wal__lead(nodedb_wal *w) {
    uint64_t seq = w->groups.head, start, ns;
    nodedb_wal__op op;
    uint32_t index;
    int error;
    if (w->groups.head == w->groups.tail) nodedb_wal__gather(w);
    if (w->failed || w->groups.head != seq) return; /* an append that found it full has sent it */
    index = nodedb_wal__close_group(w);
    op = nodedb_wal__group_op(w, index);
    nodedb_wal__unlock(w);
    start = nodedb_now_ns(NULL);
    error = w->device.engine.write(w, &op);
    ns = nodedb_now_ns(NULL) - start;
    (void)pthread_mutex_lock(&w->lock);
    w->committers.write_ns = w->committers.write_ns == 0 ? ns : (7 * w->committers.write_ns + ns) / 8;
    w->stats.syncs++;
    w->groups.at[index].finished = error == 0;
    if (error != 0) (void)nodedb_wal__break(w, -error, "writing a group failed", op.offset, NULL);
    nodedb_wal__retire_groups(w); /* before the next segment has its turn */
    if (w->device.reaper == NODEDB_WAL__REAPER_NONE && !w->failed) {
        nodedb_wal__reap(w, false, NODEDB_WAL__REAPER_WAITER);
        (void)nodedb_wal__spare_advance(w, NULL);
    }
}

/* The group that holds record `lsn`, which is not durable yet. */
static nodedb_wal__group *nodedb_wal__group_of(nodedb_wal *w, uint64_t lsn) {
    uint64_t s = w->groups.tail;
    while (s < w->groups.head && nodedb_wal__group_at(w, s)->last_lsn < lsn) s++;
    return nodedb_wal__group_at(w, s);
}

/* One of the waiting threads polls its word instead of sleeping, for one and a half writes at most: a processor that
 * has gone to sleep needs half as long again to wake up. Gives way to any other thread. */
static void nodedb_wal__stay_awake(nodedb_wal *w, const uint32_t *word, uint32_t old, uint64_t most) {
    uint64_t start = nodedb_now_ns(NULL);
    if (most > NODEDB_WAL__GATHER_NS) most = NODEDB_WAL__GATHER_NS;
    while (nodedb__load_acquire(word) == old && nodedb_now_ns(NULL) - start < most) (void)sched_yield();
    nodedb__store_release(&w->committers.awake, false);
}

/* Waits until `lsn` is durable: leads, reaps or sleeps. Called with the lock; returns without it. */
static nodedb_status nodedb_wal__wait_and_unlock(nodedb_wal *w, uint64_t lsn, nodedb_error *err) {
    nodedb_wal__group *g;
    nodedb_status status;
    if (!w->failed && w->lsns.durable < lsn) {
        nodedb_wal__group_of(w, lsn)->committers++;
        if (++w->committers.count > w->committers.crowd) w->committers.crowd = w->committers.count;
    }
    while (!w->failed && w->lsns.durable < lsn) {
        g = nodedb_wal__group_of(w, lsn);
        if (g == nodedb_wal__open_group(w) && nodedb_wal__may_lead(w)) nodedb_wal__lead(w);
        else if (w->device.reaper == NODEDB_WAL__REAPER_NONE && w->groups.started > 0) {
            nodedb_wal__reap(w, true, NODEDB_WAL__REAPER_WAITER);
            if (!w->failed) (void)nodedb_wal__spare_advance(w, NULL);
        } else {
            uint32_t word = g->word;
            uint64_t most = w->committers.write_ns * 3 / 2;
            bool awake = !nodedb__load_acquire(&w->committers.awake) && w->committers.count > 1;
            g->sleepers++;
            if (awake) nodedb__store_release(&w->committers.awake, true);
            nodedb_wal__unlock(w);
            if (awake) nodedb_wal__stay_awake(w, &g->word, word, most);
            while (nodedb__load_acquire(&g->word) == word) nodedb_wal__futex(&g->word, FUTEX_WAIT_PRIVATE, word);
            if (nodedb__load_acquire(&w->lsns.durable) >= lsn) return NODEDB_OK;
            (void)pthread_mutex_lock(&w->lock);
            if (w->lsns.durable < lsn) g->sleepers--;
        }
    }
    status = w->lsns.durable >= lsn ? NODEDB_OK : nodedb_wal__failed(w, err);
    nodedb_wal__unlock(w);
    return status;
}

/* An append found no free group: reaps, or waits until another thread has retired one. Under the lock. */
static void nodedb_wal__wait_for_space(nodedb_wal *w) {
    if (w->device.reaper == NODEDB_WAL__REAPER_NONE && w->groups.started > 0) {
        nodedb_wal__reap(w, true, NODEDB_WAL__REAPER_WAITER);
    } else if (w->committers.wake != 0) { /* first it must wake those whose group is durable */
        nodedb_wal__unlock(w);
        (void)pthread_mutex_lock(&w->lock);
    } else {
        w->groups.space_waiters++;
        (void)pthread_cond_wait(&w->groups.space, &w->lock);
        w->groups.space_waiters--;
    }
}

/* ---- the API of writing ----------------------------------------------------------------------------------------- */

NODEDB_WAL_API nodedb_status nodedb_wal_append(nodedb_wal *w, const nodedb_wal_record *record, uint64_t *lsn,
                                               nodedb_error *err) {
    nodedb_status status = nodedb_wal__check_record(w, record, err);
    if (status != NODEDB_OK) return status;
    (void)pthread_mutex_lock(&w->lock);
    status = nodedb_wal__append_locked(w, record, 0, lsn, err);
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_submit(nodedb_wal *w, nodedb_error *err) {
    nodedb_status status;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_submit needs a log");
    (void)pthread_mutex_lock(&w->lock);
    status = nodedb_wal__submit_locked(w, err);
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_poll(nodedb_wal *w, uint64_t *durable_lsn, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_poll needs a log");
    (void)pthread_mutex_lock(&w->lock);
    {
        uint64_t drained;
        ssize_t n = read(w->device.event_fd, &drained, sizeof drained); /* first: later events make it readable again */
        (void)n;
    }
    if (w->device.reaper != NODEDB_WAL__REAPER_NONE) w->device.poll_missed = true;
    else if (!w->failed) {
        nodedb_wal__reap(w, false, NODEDB_WAL__REAPER_POLL);
        (void)nodedb_wal__spare_advance(w, NULL); /* why it cannot is said when a rollover needs it */
    }
    if (w->failed) status = nodedb_wal__failed(w, err);
    if (durable_lsn != NULL) *durable_lsn = w->lsns.durable;
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_wait(nodedb_wal *w, uint64_t lsn, nodedb_error *err) {
    nodedb_status status;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_wait needs a log");
    (void)pthread_mutex_lock(&w->lock);
    if (lsn >= w->lsns.next)
        status = nodedb_fail(err, NODEDB_ERR_INVALID, 0, "LSN %llu has not been given out in %s",
                              (unsigned long long)lsn, w->dir);
    else return nodedb_wal__wait_and_unlock(w, lsn, err);
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_await(nodedb_wal *w, uint64_t lsn, uint64_t timeout_ns, nodedb_error *err) {
    struct timespec until;
    nodedb_status status = NODEDB_OK;
    int error = 0;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_await needs a log");
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_ns > NODEDB_WAL__MAX_AWAIT_NS) timeout_ns = NODEDB_WAL__MAX_AWAIT_NS;
    timeout_ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(timeout_ns / UINT64_C(1000000000));
    until.tv_nsec = (long)(timeout_ns % UINT64_C(1000000000));
    (void)pthread_mutex_lock(&w->lock);
    w->lsns.watchers++;
    while (w->lsns.durable < lsn && !w->failed && !w->lsns.await_cancelled && error != ETIMEDOUT)
        error = pthread_cond_timedwait(&w->lsns.moved, &w->lock, &until);
    w->lsns.watchers--;
    if (w->lsns.durable < lsn)
        status = w->failed ? nodedb_wal__failed(w, err)
                           : nodedb_fail(err, w->lsns.await_cancelled ? NODEDB_ERR_CANCELLED : NODEDB_ERR_TIMEOUT, 0,
                                         "record %llu of %s is not durable yet", (unsigned long long)lsn,
                                         nodedb__path_end(w->dir));
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API void nodedb_wal_cancel_await(nodedb_wal *w, bool cancel) {
    (void)pthread_mutex_lock(&w->lock);
    w->lsns.await_cancelled = cancel;
    if (cancel) (void)pthread_cond_broadcast(&w->lsns.moved);
    nodedb_wal__unlock(w);
}

NODEDB_WAL_API nodedb_status nodedb_wal_commit(nodedb_wal *w, const nodedb_wal_record *records, size_t count,
                                               uint64_t *last_lsn, nodedb_error *err) {
    uint64_t lsn = 0;
    nodedb_wal_tombstone stone;
    size_t reserved = 0; /* places for tombstones that are not appended yet */
    nodedb_status status = NODEDB_OK;
    if (w == NULL || records == NULL || count == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_commit needs a log and records");
    for (size_t i = 0; i < count; i++) {
        status = nodedb_wal__check_record(w, &records[i], err);
        if (status != NODEDB_OK) return status;
    }
    (void)pthread_mutex_lock(&w->lock);
    if (w->failed) status = nodedb_wal__failed(w, err);
    else status = nodedb_wal__tombstones_reserve(w, records, count, &stone, &reserved, err); /* before any has an LSN */
    for (size_t i = 0; i < count && status == NODEDB_OK; i++) {
        bool tombstone = nodedb_wal__is_tombstone(records[i].type);
        if (tombstone && count > 1) nodedb_wal__tombstone_of(w, &records[i], &stone);
        while ((status = nodedb_wal__append_reserved(w, &records[i], &stone, 0, &lsn, err)) == NODEDB_ERR_AGAIN)
            nodedb_wal__wait_for_space(w);
        if (status == NODEDB_OK && tombstone) reserved--;
    }
    w->tombstones.reserved -= reserved; /* of those that were not appended */
    if (status == NODEDB_OK) status = nodedb_wal__wait_and_unlock(w, lsn, err);
    else nodedb_wal__unlock(w);
    if (last_lsn != NULL && status == NODEDB_OK) *last_lsn = lsn;
    return status;
}

NODEDB_WAL_API uint64_t nodedb_wal_durable_lsn(const nodedb_wal *w) { return nodedb__load_acquire(&w->lsns.durable); }

NODEDB_WAL_API uint64_t nodedb_wal_first_lsn(nodedb_wal *w) {
    const nodedb_wal__file *current;
    uint64_t lsn;
    (void)pthread_mutex_lock(&w->lock);
    current = nodedb_wal__current_file(w);
    lsn = w->segments.sealed_count > 0 ? w->segments.sealed[0].first_lsn
          : current->fd >= 0           ? current->segment.first_lsn
                                       : w->lsns.next;
    nodedb_wal__unlock(w);
    return lsn;
}

NODEDB_WAL_API uint64_t nodedb_wal_last_lsn(nodedb_wal *w) {
    uint64_t lsn;
    (void)pthread_mutex_lock(&w->lock);
    lsn = w->lsns.next - 1;
    nodedb_wal__unlock(w);
    return lsn;
}

NODEDB_WAL_API uint32_t nodedb_wal_groups_in_flight(nodedb_wal *w) {
    uint32_t n;
    (void)pthread_mutex_lock(&w->lock);
    n = (uint32_t)(w->groups.head - w->groups.tail);
    nodedb_wal__unlock(w);
    return n;
}

NODEDB_WAL_API int nodedb_wal_fd(const nodedb_wal *w) { return w->device.event_fd; }

NODEDB_WAL_API const char *nodedb_wal_describe(const nodedb_wal *w) { return w->description; }

NODEDB_WAL_API void nodedb_wal_get_stats(nodedb_wal *w, nodedb_wal_stats *stats) {
    (void)pthread_mutex_lock(&w->lock);
    *stats = w->stats;
    stats->records_per_group = stats->groups == 0 ? 0 : (double)stats->records / (double)stats->groups;
    stats->commit_p50_ns = nodedb_wal__latency_at(w, 0.5);
    stats->commit_p99_ns = nodedb_wal__latency_at(w, 0.99);
    stats->commit_p999_ns = nodedb_wal__latency_at(w, 0.999);
    nodedb_wal__unlock(w);
}

/* ===================================================================================================================
 * NEXT SEGMENT: prepared ahead, begun, recycled, truncated
 *
 * A commit must not change file-system metadata, which costs a second write. So a segment is allocated and filled with
 * zeros before it is used, a step at a time while the current one fills; or a truncated segment is used again.
 *
 *     prepare.tmp --filled, synced--> spare-N.wal --preamble synced--> <first LSN>.wal --truncated--> spare-M.wal
 * ================================================================================================================ */

/* ---- a spare: space that is allocated and filled ---------------------------------------------------------------- */

#define NODEDB_WAL__FILL_BYTES ((size_t)256 << 10) /* zeros written at a time into a segment that is prepared */
#define NODEDB_WAL__SMALL_SEGMENT_BYTES (UINT64_C(256) << 10) /* where the disk has no room for a whole one ... */
#define NODEDB_WAL__SMALL_SEGMENTS 16 /* ... and so many follow each other before a whole one is tried again */

/* Gives up the spare that is being prepared; a full disk gets its blocks back. */
static nodedb_status nodedb_wal__spare_failed(nodedb_wal *w, int error, const char *what, nodedb_error *err) {
    nodedb_wal__spare *s = &w->spares.next;
    char path[NODEDB_WAL__PATH_BYTES];
    nodedb_wal__register_file(w, NODEDB_WAL__SPARE_FILE, -1);
    if (s->state == NODEDB_WAL__SPARE_FILLING || s->state == NODEDB_WAL__SPARE_SYNCED)
        (void)w->io.close(w->io.ctx, s->fd);
    memset(s, 0, sizeof *s);
    s->refused = true;
    nodedb_wal__prepare_path(path, w->dir);
    (void)w->io.unlink(w->io.ctx, path);
    return nodedb_fail(err, nodedb_io_status(-error), -error, "cannot prepare a segment in %s: %s", w->dir, what);
}

/* Writes go through the page cache from now on: said when a file was opened so. */
static void nodedb_wal__say_no_direct(const nodedb_wal *w) {
    nodedb_say(&w->config.logger, NODEDB_LOG_WARNING,
               "log %s: the file system refuses O_DIRECT, so writes go through the page cache; for direct writes put "
               "the log on ext4 or xfs",
               w->dir);
}

/* Opens prepare.tmp with `flags` and takes its blocks. 0 or -errno; on an error no file is open. */
static int nodedb_wal__spare_open(nodedb_wal *w, const char *path, uint64_t bytes, int flags) {
    nodedb_wal__spare *s = &w->spares.next;
    int error;
    s->fd = w->io.open(w->io.ctx, path, O_RDWR | O_CREAT | O_TRUNC | flags, 0644);
    if (s->fd < 0) return s->fd;
    error = w->io.allocate(w->io.ctx, s->fd, 0, bytes);
    if (nodedb_wal__is_refusal(-error)) error = 0; /* filling it takes the blocks as well */
    if (error == 0) error = nodedb__write_all(&w->io, s->fd, w->spares.zeros, w->block_bytes, 0);
    if (error == 0) s->state = NODEDB_WAL__SPARE_FILLING;
    else (void)w->io.close(w->io.ctx, s->fd);
    return error;
}

/* Creates prepare.tmp with all its blocks allocated. Its first write is also the test of O_DIRECT. An errno alone does
 * not tell what was refused: a directory that has become read-only answers EACCES too. So it is O_DIRECT that is
 * refused if the same calls succeed without it; otherwise nothing changes, and the first error counts. Groups may be in
 * flight to files that are open with O_DIRECT: they end as they began. */
static nodedb_status nodedb_wal__spare_create(nodedb_wal *w, uint64_t bytes, nodedb_error *err) {
    nodedb_wal__spare *s = &w->spares.next;
    char path[NODEDB_WAL__PATH_BYTES];
    int error;
    assert(s->state == NODEDB_WAL__SPARE_NONE);
    nodedb_wal__prepare_path(path, w->dir);
    error = nodedb_wal__spare_open(w, path, bytes, w->open_flags);
    if (nodedb_wal__is_refusal(-error) && w->open_flags != 0 && nodedb_wal__spare_open(w, path, bytes, 0) == 0) {
        nodedb__store_release(&w->open_flags, 0);
        nodedb_wal__leave_ring(w); /* cached writes do not report their own errors: see sync_file */
        nodedb_wal__say_no_direct(w);
        error = 0;
    }
    if (error != 0) return nodedb_wal__spare_failed(w, error, "opening a file and taking its space", err);
    s->bytes = bytes;
    s->filled = w->block_bytes;
    nodedb_wal__register_file(w, NODEDB_WAL__SPARE_FILE, s->fd);
    return NODEDB_OK;
}

/* Filled and synced: gives it a name that survives a restart. */
static nodedb_status nodedb_wal__spare_name(nodedb_wal *w, nodedb_error *err) {
    char from[NODEDB_WAL__PATH_BYTES], to[NODEDB_WAL__PATH_BYTES];
    int error;
    w->spares.next.number = w->spares.next_number++;
    nodedb_wal__prepare_path(from, w->dir);
    nodedb_wal__spare_path(to, w->dir, w->spares.next.number);
    error = w->io.rename(w->io.ctx, from, to);
    if (error != 0) return nodedb_wal__spare_failed(w, error, "naming it", err);
    w->spares.next.state = NODEDB_WAL__SPARE_READY;
    return NODEDB_OK;
}

static size_t nodedb_wal__fill_bytes(const nodedb_wal *w) {
    uint64_t left = w->spares.next.bytes - w->spares.next.filled;
    return left < NODEDB_WAL__FILL_BYTES ? (size_t)left : NODEDB_WAL__FILL_BYTES;
}

/* One bounded step towards the next segment, through the engine; called once for each turn of the writer. Starts when
 * an eighth of the current segment is used, so that a short-lived log does not write a second one. */
static nodedb_status nodedb_wal__spare_advance(nodedb_wal *w, nodedb_error *err) {
    nodedb_wal__spare *s = &w->spares.next;
    nodedb_wal__op op;
    if (s->busy || s->refused || w->failed || s->state == NODEDB_WAL__SPARE_READY) return NODEDB_OK;
    if (s->state == NODEDB_WAL__SPARE_NONE) {
        const nodedb_wal__file *f = nodedb_wal__current_file(w);
        if (w->spares.pool_count > 0 || w->spares.small_left > 0) return NODEDB_OK;
        if (f->fd < 0 || w->segments.write_offset < f->segment.bytes / 8) return NODEDB_OK;
        return nodedb_wal__spare_create(w, w->config.segment_bytes, err);
    }
    if (s->state == NODEDB_WAL__SPARE_SYNCED) return nodedb_wal__spare_name(w, err);
    memset(&op, 0, sizeof op);
    op.fd = s->fd;
    op.file = NODEDB_WAL__SPARE_FILE;
    op.tag = NODEDB_WAL__TAG_FILL_SYNC;
    if (s->filled < s->bytes) {
        op.tag = NODEDB_WAL__TAG_FILL;
        op.data = w->spares.zeros;
        op.bytes = nodedb_wal__fill_bytes(w);
        op.offset = s->filled;
    }
    s->busy = true;
    w->device.engine.start(w, &op);
    return NODEDB_OK;
}

static void nodedb_wal__spare_drop(nodedb_wal *w) {
    char path[NODEDB_WAL__PATH_BYTES];
    nodedb_wal__register_file(w, NODEDB_WAL__SPARE_FILE, -1);
    (void)w->io.close(w->io.ctx, w->spares.next.fd);
    nodedb_wal__spare_path(path, w->dir, w->spares.next.number);
    if (w->spares.next.state == NODEDB_WAL__SPARE_READY) (void)w->io.unlink(w->io.ctx, path);
    memset(&w->spares.next, 0, sizeof w->spares.next);
}

/* A recycled segment becomes the spare, if there is one that can still be opened. */
static void nodedb_wal__spare_from_pool(nodedb_wal *w) {
    char path[NODEDB_WAL__PATH_BYTES];
    while (w->spares.pool_count > 0 && w->spares.next.state == NODEDB_WAL__SPARE_NONE) {
        nodedb_wal__pooled pooled = w->spares.pool[--w->spares.pool_count];
        int fd;
        nodedb_wal__spare_path(path, w->dir, pooled.number);
        fd = w->io.open(w->io.ctx, path, O_RDWR | w->open_flags, 0);
        if (fd < 0) continue;
        memset(&w->spares.next, 0, sizeof w->spares.next);
        w->spares.next.fd = fd;
        w->spares.next.bytes = w->config.segment_bytes;
        w->spares.next.number = pooled.number;
        w->spares.next.recycled = pooled.recycled;
        w->spares.next.state = NODEDB_WAL__SPARE_READY;
    }
}

/* Waits until the engine has no operation of the spare. Lets the lock go meanwhile. */
static void nodedb_wal__spare_wait(nodedb_wal *w) {
    while (w->spares.next.busy && !w->failed) {
        if (w->device.reaper != NODEDB_WAL__REAPER_NONE) {
            w->groups.space_waiters++;
            (void)pthread_cond_wait(&w->groups.space, &w->lock);
            w->groups.space_waiters--;
        } else nodedb_wal__reap(w, true, NODEDB_WAL__REAPER_WAITER);
    }
}

/* A spare of at least `bytes`, now, whatever it takes. Where it had to wait for the engine, and so let the lock go, it
 * returns OK without one: make_room checks everything again. */
static nodedb_status nodedb_wal__spare_finish(nodedb_wal *w, uint64_t bytes, nodedb_error *err) {
    nodedb_wal__spare *s = &w->spares.next;
    bool waited = s->busy;
    int error = 0;
    nodedb_wal__spare_wait(w);
    if (w->failed) return nodedb_wal__failed(w, err);
    if (waited) return NODEDB_OK;
    if (s->state != NODEDB_WAL__SPARE_NONE && s->bytes < bytes) nodedb_wal__spare_drop(w); /* for a large record */
    if (s->state == NODEDB_WAL__SPARE_NONE && bytes == w->config.segment_bytes) nodedb_wal__spare_from_pool(w);
    if (s->state == NODEDB_WAL__SPARE_NONE) {
        nodedb_status status = nodedb_wal__spare_create(w, bytes, err);
        if (status != NODEDB_OK) return status;
    }
    if (s->state == NODEDB_WAL__SPARE_READY) return NODEDB_OK;
    if (s->state == NODEDB_WAL__SPARE_FILLING) {
        while (error == 0 && s->filled < s->bytes) {
            size_t step = nodedb_wal__fill_bytes(w);
            error = nodedb__write_all(&w->io, s->fd, w->spares.zeros, step, s->filled);
            s->filled += step;
        }
        if (error == 0) error = w->io.sync(w->io.ctx, s->fd);
        if (error != 0) return nodedb_wal__spare_failed(w, error, "filling it with zeros", err);
        s->state = NODEDB_WAL__SPARE_SYNCED;
    }
    return nodedb_wal__spare_name(w, err);
}

/* A spare of *bytes, the usual size or what a large record needs; where the disk has no room for that, a small one of
 * at least `need` bytes. Sets *bytes to the least size that will do from then on. After a refusal the next few are
 * small at once: each try for a whole one takes, for a moment, space that other writers on this disk may need. Lets
 * the lock go, as spare_finish does. */
static nodedb_status nodedb_wal__spare_or_small(nodedb_wal *w, uint64_t need, uint64_t *bytes, nodedb_error *err) {
    uint64_t small = nodedb_wal__round_up(
        need > NODEDB_WAL__SMALL_SEGMENT_BYTES ? need : NODEDB_WAL__SMALL_SEGMENT_BYTES, w->block_bytes);
    nodedb_status status;
    if (small >= *bytes) return nodedb_wal__spare_finish(w, *bytes, err);
    if (w->spares.small_left == 0 || w->spares.next.busy || w->spares.next.bytes >= *bytes) {
        status = nodedb_wal__spare_finish(w, *bytes, err);
        if (status != NODEDB_ERR_DISK_FULL) return status;
        if (!w->spares.said_small)
            nodedb_say(&w->config.logger, NODEDB_LOG_WARNING,
                       "log %s: the disk has no room for a segment of %llu KiB, so small ones are begun", w->dir,
                       (unsigned long long)(*bytes >> 10));
        w->spares.said_small = true;
        w->spares.small_left = NODEDB_WAL__SMALL_SEGMENTS;
    }
    *bytes = small;
    status = nodedb_wal__spare_finish(w, small, err);
    if (status == NODEDB_OK && w->spares.next.state == NODEDB_WAL__SPARE_READY) w->spares.small_left--;
    return status;
}

/* ---- a segment begins ------------------------------------------------------------------------------------------- */

static nodedb_status nodedb_wal__too_many_segments(const nodedb_wal *w, nodedb_error *err) {
    return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "the log in %s has %d segments: make a checkpoint and truncate it",
                       w->dir, NODEDB_WAL_MAX_SEGMENTS);
}

static nodedb_status nodedb_wal__sealed_push(nodedb_wal *w, const nodedb_wal__segment *segment, nodedb_error *err) {
    nodedb_wal__segments *s = &w->segments;
    if (s->sealed_count == s->sealed_capacity) {
        nodedb_wal__segment *grown;
        if (s->sealed_count >= NODEDB_WAL_MAX_SEGMENTS) return nodedb_wal__too_many_segments(w, err);
        grown = (nodedb_wal__segment *)nodedb_wal__grow(&w->config.allocator, s->sealed, s->sealed_count,
                                                        &s->sealed_capacity, sizeof *grown, 64);
        if (grown == NULL)
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the list of segments of %s", w->dir);
        s->sealed = grown;
    }
    s->sealed[s->sealed_count++] = *segment;
    return NODEDB_OK;
}

/* The key for the segment that begins; 0 without a cipher. */
static nodedb_status nodedb_wal__choose_key(nodedb_wal *w, uint32_t *key_id, nodedb_error *err) {
    *key_id = 0;
    if (w->config.cipher.seal == NULL) return NODEDB_OK;
    *key_id = w->config.cipher.key_id(w->config.cipher.ctx);
    if (*key_id == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "the cipher of the log in %s names key 0, which means no key",
                            nodedb__path_end(w->dir));
    if (w->segments.next_epoch > UINT32_MAX)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0,
                            "the log in %s has used 2^32 segments, all that there are nonces for: begin a new log",
                            nodedb__path_end(w->dir));
    return NODEDB_OK;
}

/* A segment with a higher epoch is durably there, so the dead-E.wal files have done their duty. One that cannot be
 * removed, or comes back after a power cut, goes the next time. */
static void nodedb_wal__remove_dead(nodedb_wal *w) {
    char path[NODEDB_WAL__PATH_BYTES];
    while (w->segments.dead_count > 0) {
        nodedb_wal__dead_path(path, w->dir, w->segments.dead[--w->segments.dead_count]);
        (void)w->io.unlink(w->io.ctx, path);
    }
}

/* Describes the segment that begins in the ready spare, in *segment and in the preamble's block. */
static nodedb_status nodedb_wal__make_preamble(nodedb_wal *w, nodedb_wal__segment *segment, nodedb_error *err) {
    nodedb_status status;
    memset(segment, 0, sizeof *segment);
    status = nodedb_wal__choose_key(w, &segment->key_id, err);
    if (status != NODEDB_OK) return status;
    segment->log_id = w->segments.log_id;
    segment->epoch = w->segments.next_epoch++;
    segment->first_lsn = w->lsns.next;
    segment->bytes = w->spares.next.bytes;
    segment->block_bytes = w->block_bytes;
    segment->watermark = w->lsns.durable;
    segment->tombstones = w->tombstones.in_file;
    segment->recycled = w->spares.next.recycled;
    nodedb_wal__encode_preamble(w->segments.preamble, segment);
    segment->seed = nodedb_wal__seed_of(w->segments.preamble);
    if (segment->key_id == 0) return NODEDB_OK;
    return nodedb_wal__seal_preamble(&w->config.cipher, segment, w->segments.preamble, err);
}

/* The preamble, durably, then the name, durably. Before both are there no group may go into the segment. */
static nodedb_status nodedb_wal__name_segment(nodedb_wal *w, uint64_t first_lsn, nodedb_error *err) {
    char from[NODEDB_WAL__PATH_BYTES], to[NODEDB_WAL__PATH_BYTES];
    int fd = w->spares.next.fd, error = nodedb__write_all(&w->io, fd, w->segments.preamble, w->block_bytes, 0);
    if (error == 0) error = w->io.sync(w->io.ctx, fd);
    nodedb_wal__spare_path(from, w->dir, w->spares.next.number);
    nodedb_wal__segment_path(to, w->dir, first_lsn);
    if (error == 0) error = w->io.rename(w->io.ctx, from, to);
    if (nodedb_io_status(-error) == NODEDB_ERR_DISK_FULL) { /* no room for a name: nothing has changed yet */
        nodedb_wal__spare_drop(w);
        return nodedb_fail(err, NODEDB_ERR_DISK_FULL, -error, "cannot begin the next segment in %s", w->dir);
    }
    if (error == 0) error = w->io.sync(w->io.ctx, w->dir_fd);
    return error == 0 ? NODEDB_OK : nodedb_wal__break(w, -error, "beginning the next segment failed", 0, err);
}

/* Makes the ready spare the current segment. The open group must be empty, and no group may be in flight to the segment
 * before the current one. */
static nodedb_status nodedb_wal__begin_segment(nodedb_wal *w, nodedb_error *err) {
    nodedb_wal__file *previous = nodedb_wal__previous_file(w), *old = nodedb_wal__current_file(w);
    nodedb_wal__segment segment;
    nodedb_status status;
    assert(nodedb_wal__open_group(w)->records == 0 && previous->in_flight == 0);
    assert(w->spares.next.state == NODEDB_WAL__SPARE_READY);
    if (w->segments.sealed_count + 2 > NODEDB_WAL_MAX_SEGMENTS) return nodedb_wal__too_many_segments(w, err);
    status = nodedb_wal__save_tombstones(w, err);
    if (status == NODEDB_OK) status = nodedb_wal__make_preamble(w, &segment, err);
    if (status == NODEDB_OK && old->fd >= 0) status = nodedb_wal__sealed_push(w, &old->segment, err);
    if (status != NODEDB_OK) return status;
    status = nodedb_wal__name_segment(w, segment.first_lsn, err);
    if (status == NODEDB_ERR_DISK_FULL && old->fd >= 0) w->segments.sealed_count--;
    if (status != NODEDB_OK) return status;
    if (previous->fd >= 0) (void)w->io.close(w->io.ctx, previous->fd);
    previous->fd = w->spares.next.fd;
    previous->segment = segment;
    w->segments.current = 1 - w->segments.current;
    nodedb_wal__register_file(w, w->segments.current, w->spares.next.fd);
    nodedb_wal__register_file(w, NODEDB_WAL__SPARE_FILE, -1);
    w->segments.write_offset = w->block_bytes;
    memcpy(w->segments.header, w->segments.preamble, NODEDB_WAL__SIGNED_BYTES);
    w->segments.rollover = false;
    if (segment.bytes >= w->config.segment_bytes) w->spares.said_small = false;
    nodedb_wal__remove_dead(w);
    memset(&w->spares.next, 0, sizeof w->spares.next);
    w->stats.segments_begun++;
    return NODEDB_OK;
}

/* ---- truncation, and what else changes the set of segments ------------------------------------------------------ */

/* Unlinks one spare of the pool. */
static void nodedb_wal__drop_pooled(nodedb_wal *w) {
    char path[NODEDB_WAL__PATH_BYTES];
    nodedb_wal__spare_path(path, w->dir, w->spares.pool[--w->spares.pool_count].number);
    (void)w->io.unlink(w->io.ctx, path);
}

/* Removes a segment: it becomes a spare if it has the usual size and there is a place, else its file is deleted.
 * Durable when this returns, so segments go one by one and a power cut never leaves a gap. 0 or -errno. */
static int nodedb_wal__recycle(nodedb_wal *w, const nodedb_wal__segment *segment) {
    char from[NODEDB_WAL__PATH_BYTES], to[NODEDB_WAL__PATH_BYTES];
    uint32_t spares = w->spares.pool_count + (w->spares.next.state != NODEDB_WAL__SPARE_NONE);
    int error;
    nodedb_wal__segment_path(from, w->dir, segment->first_lsn);
    if (spares >= NODEDB_WAL__MAX_SPARES || segment->bytes != w->config.segment_bytes ||
        segment->block_bytes != w->block_bytes || w->config.no_recycling) {
        error = w->io.unlink(w->io.ctx, from);
        return error != 0 ? error : w->io.sync(w->io.ctx, w->dir_fd);
    }
    nodedb_wal__spare_path(to, w->dir, w->spares.next_number);
    error = w->io.rename(w->io.ctx, from, to);
    if (error == 0) error = w->io.sync(w->io.ctx, w->dir_fd);
    if (error != 0) return error;
    w->spares.pool[w->spares.pool_count].number = w->spares.next_number++;
    w->spares.pool[w->spares.pool_count++].recycled = true;
    w->stats.segments_recycled++;
    return 0;
}

/* True if the oldest sealed segment may be removed. All its records must be below `lsn` and durable. The segment
 * before the current one stays while groups are on their way to it; and one segment must stay, as it tells the next
 * LSN. */
static bool nodedb_wal__may_truncate(nodedb_wal *w, uint64_t lsn) {
    const nodedb_wal__file *current = nodedb_wal__current_file(w);
    uint64_t next = w->lsns.next; /* the first LSN behind that segment */
    if (w->segments.sealed_count == 0) return false;
    if (w->segments.sealed_count > 1) next = w->segments.sealed[1].first_lsn;
    else if (current->fd >= 0) next = current->segment.first_lsn;
    if (next > lsn || next > w->lsns.durable + 1) return false;
    return w->segments.sealed_count > 1 || (nodedb_wal__previous_file(w)->in_flight == 0 && current->fd >= 0);
}

/* Removes the oldest sealed segment. 0 or -errno. */
static int nodedb_wal__truncate_one(nodedb_wal *w) {
    nodedb_wal__file *previous = nodedb_wal__previous_file(w);
    int error;
    if (previous->fd >= 0 && previous->segment.first_lsn == w->segments.sealed[0].first_lsn) {
        nodedb_wal__register_file(w, 1 - w->segments.current, -1);
        (void)w->io.close(w->io.ctx, previous->fd);
        previous->fd = -1;
    }
    error = nodedb_wal__recycle(w, &w->segments.sealed[0]);
    if (error != 0) return error;
    w->segments.sealed_count--;
    memmove(w->segments.sealed, w->segments.sealed + 1, w->segments.sealed_count * sizeof *w->segments.sealed);
    return 0;
}

NODEDB_WAL_API nodedb_status nodedb_wal_truncate_before(nodedb_wal *w, uint64_t lsn, uint32_t *removed,
                                                        nodedb_error *err) {
    uint32_t n = 0;
    int error = 0;
    nodedb_status status = NODEDB_OK;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_truncate_before needs a log");
    (void)pthread_mutex_lock(&w->lock);
    if (w->failed) status = nodedb_wal__failed(w, err);
    for (; status == NODEDB_OK && nodedb_wal__may_truncate(w, lsn); n++) {
        status = nodedb_wal__save_tombstones(w, err);
        if (status != NODEDB_OK || (error = nodedb_wal__truncate_one(w)) != 0) break;
    }
    if (error != 0) /* what is on the disk is not known any more */
        status = nodedb_wal__break(w, -error, "removing a segment failed", 0, err);
    w->spares.next.refused = false; /* there may be room now */
    w->spares.small_left = 0;
    nodedb_wal__unlock(w);
    if (removed != NULL) *removed = n;
    return status;
}

NODEDB_WAL_API uint32_t nodedb_wal_drop_spares(nodedb_wal *w) {
    uint32_t dropped = 0;
    if (w == NULL) return 0;
    (void)pthread_mutex_lock(&w->lock);
    for (; w->spares.pool_count > 0; dropped++) nodedb_wal__drop_pooled(w);
    nodedb_wal__unlock(w);
    return dropped;
}

NODEDB_WAL_API nodedb_status nodedb_wal_rollover(nodedb_wal *w, nodedb_error *err) {
    const nodedb_wal_cipher *cipher;
    const nodedb_wal__file *f;
    nodedb_wal_record seal;
    nodedb_status status = NODEDB_OK;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_rollover needs a log");
    (void)pthread_mutex_lock(&w->lock);
    cipher = &w->config.cipher;
    f = nodedb_wal__current_file(w);
    if (w->failed) status = nodedb_wal__failed(w, err);
    else if (f->fd >= 0 && f->segment.first_lsn != w->lsns.next) w->segments.rollover = true;
    else if (f->fd >= 0 && cipher->seal != NULL && cipher->key_id(cipher->ctx) != f->segment.key_id) {
        memset(&seal, 0, sizeof seal); /* the next segment's name must be another than this one's */
        status = nodedb_wal__append_locked(w, &seal, NODEDB_WAL__FLAG_SEAL, &w->segments.seal_lsn, err);
        w->segments.rollover = status == NODEDB_OK;
    }
    nodedb_wal__unlock(w);
    return status;
}

/* ===================================================================================================================
 * OPEN AND CLOSE: recovery, and a seal at the end
 *
 * Opening reads the preambles of all segments and the records of the last two: no other can hold a torn tail, as a
 * third segment is not begun before all of the first is durable. What follows the end of the log is dropped. Writing
 * goes on in a new segment, so a block that holds an acknowledged record is never written again.
 * ================================================================================================================ */

/* ---- recovery --------------------------------------------------------------------------------------------------- */

/* What recovery reads counts as durable from then on, so it is made durable first: a writer that was killed may have
 * left writes and names that no sync has covered. What the page cache holds of these files is dropped: after a failed
 * sync it may hold what the disk does not. */
static nodedb_status nodedb_wal__sync_found(nodedb_wal *w, const nodedb_wal__list *list, nodedb_error *err) {
    int error = w->io.sync(w->io.ctx, w->dir_fd);
    for (size_t i = nodedb_wal__last_two(list); i < list->count && error == 0; i++) {
        char path[NODEDB_WAL__PATH_BYTES];
        int fd;
        nodedb_wal__segment_path(path, w->dir, list->at[i].first_lsn);
        fd = w->io.open(w->io.ctx, path, O_RDWR, 0);
        error = fd < 0 ? fd : w->io.sync(w->io.ctx, fd);
        if (fd < 0) break;
        if (w->config.io.open == NULL) (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        (void)w->io.close(w->io.ctx, fd);
    }
    return error == 0 ? NODEDB_OK
                      : nodedb_fail(err, nodedb_io_status(-error), -error, "cannot sync what is in %s", w->dir);
}

/* Removes an unfinished segment, durably: dead-E.wal remembers its epoch, its records are gone, its space is free. An
 * empty file is enough for that. The segment's own file is removed and not shortened, as a reader may have it mapped.
 * 0 or -errno. */
static int nodedb_wal__retire_segment(nodedb_wal *w, const nodedb_wal__segment *segment) {
    char from[NODEDB_WAL__PATH_BYTES], to[NODEDB_WAL__PATH_BYTES];
    int error, fd;
    nodedb_wal__segment_path(from, w->dir, segment->first_lsn);
    nodedb_wal__dead_path(to, w->dir, segment->epoch);
    fd = w->io.open(w->io.ctx, to, O_RDWR | O_CREAT, 0644);
    if (fd < 0) error = w->io.rename(w->io.ctx, from, to); /* no room for one more file */
    else {
        (void)w->io.close(w->io.ctx, fd);
        error = w->io.sync(w->io.ctx, w->dir_fd);
        if (error == 0) error = w->io.unlink(w->io.ctx, from);
    }
    if (error == 0) error = w->io.sync(w->io.ctx, w->dir_fd);
    if (error != 0) return error;
    if (w->segments.dead_count < NODEDB_WAL__MAX_DEAD) w->segments.dead[w->segments.dead_count++] = segment->epoch;
    return 0;
}

/* The log ends in segment `last` of the list. A segment behind it was begun, but nothing in it was acknowledged: it is
 * retired, and its file is not used again, as a write that a killed writer had in flight may still land in it. A last
 * segment without records stays where it is: the next one has the same name and replaces it. */
static nodedb_status nodedb_wal__keep_segments(nodedb_wal *w, const nodedb_wal__list *list, size_t last,
                                               nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    int error = 0;
    for (size_t i = 0; i <= last && status == NODEDB_OK; i++)
        if (list->at[i].first_lsn != w->lsns.next) status = nodedb_wal__sealed_push(w, &list->at[i], err);
    for (size_t i = list->count - 1; i > last && error == 0; i--) error = nodedb_wal__retire_segment(w, &list->at[i]);
    if (status == NODEDB_OK && error != 0)
        status =
            nodedb_fail(err, nodedb_io_status(-error), -error, "cannot remove an unfinished segment of %s", w->dir);
    return status;
}

static void nodedb_wal__new_log(nodedb_wal *w) {
    uint64_t id = w->config.log_id;
    w->lsns.next = w->config.first_lsn != 0 ? w->config.first_lsn : 1;
    if (id == 0 && getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
        id = nodedb_mix64(nodedb_now_ns(NULL) ^ (uint64_t)getpid() << 32); /* unlikely twice, and not secret */
    w->segments.log_id = id;
    nodedb__store_release(&w->lsns.durable, w->lsns.next - 1);
}

/* How recovery reads the last two segments: not mapped, so that a bad sector is an error and not a signal. */
static nodedb_wal_reader *nodedb_wal__recovery_reader(nodedb_wal *w, const nodedb_wal__list *list, nodedb_error *err) {
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    uint64_t bytes = 0;
    memset(&reading, 0, sizeof reading);
    for (size_t i = nodedb_wal__last_two(list); i < list->count; i++) bytes += list->at[i].bytes;
    reading.dir = w->dir;
    reading.access = bytes < NODEDB_WAL__STREAM_FROM_BYTES || w->config.backend == NODEDB_WAL_BACKEND_POSIX
                         ? NODEDB_WAL_ACCESS_BUFFERED
                         : NODEDB_WAL_ACCESS_STREAMED;
    reading.io = w->config.io;
    reading.allocator = w->config.allocator;
    reading.keep_dropped = true;
    reading.cipher = w->config.cipher;
    r = nodedb_wal__reader_new(&reading, true, err);
    if (r != NULL) r->only = NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE; /* the other types do not matter here */
    return r;
}

/* Tells the logger what recovery found. A log without a seal at its end was not closed in order. Whether the disk has
 * lost records of its last groups, or they never arrived, cannot be known then: so it tells where the log ends, unless
 * it may never have held a record. */
static void nodedb_wal__say_found(const nodedb_wal *w, const nodedb_wal_reader *r) {
    unsigned long long last = r->expected - 1, dropped = r->stats.torn_bytes;
    if (r->bad_padding > 0)
        nodedb_say(&w->config.logger, NODEDB_LOG_WARNING,
                   "log %s: padding has changed since it was written, which holds no record; is the disk failing?",
                   w->dir);
    if (r->sealed_lsn == last && (last != 0 || dropped == 0)) return; /* both 0: it may never have held a record */
    if (dropped > 0)
        nodedb_say(&w->config.logger, NODEDB_LOG_INFO,
                   "log %s was not closed: it ends with record %llu, and at most %llu bytes behind that were dropped "
                   "as a torn tail; no record that is left says that any of it was acknowledged",
                   w->dir, last, dropped);
    else
        nodedb_say(&w->config.logger, NODEDB_LOG_INFO,
                   "log %s was not closed: it ends with record %llu, and no later record can be read", w->dir, last);
}

/* Finds the last LSN in the last two segments, and the tombstones that are not in their file yet. */
static nodedb_status nodedb_wal__find_end(nodedb_wal *w, const nodedb_wal__list *list, nodedb_error *err) {
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error failure;
    nodedb_status status;
    memset(&failure, 0, sizeof failure);
    r = nodedb_wal__recovery_reader(w, list, &failure);
    if (r == NULL) return nodedb_wal__hand_over(err, &failure);
    while ((status = nodedb_wal_reader_next(r, &record, &failure)) == NODEDB_OK &&
           (status = nodedb_wal__recover_tombstone(w, &record, &failure)) == NODEDB_OK) {}
    if (status == NODEDB_ERR_AGAIN && r->expected <= w->tombstones.covered_lsn)
        status = nodedb_fail(&failure, NODEDB_ERR_CORRUPT, 0,
                             "the log in %s ends at record %llu, and its file of tombstones was written when %llu "
                             "was durable: records are missing",
                             nodedb__path_end(w->dir), (unsigned long long)(r->expected - 1),
                             (unsigned long long)w->tombstones.covered_lsn);
    if (status == NODEDB_ERR_AGAIN) { /* at the end */
        w->segments.log_id = list->at[0].log_id;
        w->lsns.next = r->expected;
        w->stats.dropped_bytes = r->stats.torn_bytes;
        nodedb__store_release(&w->lsns.durable, w->lsns.next - 1);
        status = nodedb_wal__keep_segments(w, list, r->index, &failure);
        if (status == NODEDB_OK) nodedb_wal__say_found(w, r);
    }
    nodedb_wal_reader_close(r);
    if (status != NODEDB_OK) {
        (void)nodedb_wal__hand_over(err, &failure);
        return status;
    }
    return NODEDB_OK;
}

/* Checks the keys of the last two segments, which recovery reads, before anything is changed. */
static nodedb_status nodedb_wal__check_keys(nodedb_wal *w, const nodedb_wal__list *list, nodedb_error *err) {
    unsigned char head[NODEDB_WAL_PREAMBLE_BYTES + NODEDB_WAL_TAG_BYTES];
    char path[NODEDB_WAL__PATH_BYTES];
    nodedb_status status = NODEDB_OK;
    for (size_t i = nodedb_wal__last_two(list); i < list->count && status == NODEDB_OK; i++) {
        int fd, error;
        if (list->at[i].key_id == 0) continue;
        nodedb_wal__segment_path(path, w->dir, list->at[i].first_lsn);
        if (w->config.cipher.open == NULL)
            return nodedb_fail(err, NODEDB_ERR_KEY, 0, "%s is encrypted with key %u, and there is no cipher",
                               nodedb__path_end(path), (unsigned)list->at[i].key_id);
        fd = w->io.open(w->io.ctx, path, O_RDONLY, 0);
        error = fd < 0 ? fd : nodedb__read_all(&w->io, fd, head, sizeof head, 0);
        if (fd >= 0) (void)w->io.close(w->io.ctx, fd);
        if (error != 0)
            return nodedb_fail(err, nodedb_io_status(-error), -error, "cannot read the preamble of %s",
                               nodedb__path_end(path));
        status = nodedb_wal__check_key(&w->config.cipher, w->dir, &list->at[i], head, err);
    }
    return status;
}

/* True if this spare may be used: it has the right size, and is empty or says which epoch its old records have. That
 * epoch must never be given out again, or they would count once more. */
static bool nodedb_wal__spare_usable(nodedb_wal *w, const char *path, bool *recycled) {
    unsigned char head[NODEDB_WAL_PREAMBLE_BYTES];
    nodedb_wal__segment segment;
    int fd = w->io.open(w->io.ctx, path, O_RDWR, 0);
    bool readable;
    if (fd < 0) return false;
    readable = w->io.size(w->io.ctx, fd) == (int64_t)w->config.segment_bytes &&
               nodedb__read_all(&w->io, fd, head, sizeof head, 0) == 0;
    (void)w->io.close(w->io.ctx, fd);
    if (!readable) return false;
    *recycled = !nodedb_wal__all_zero(head, sizeof head);
    if (!*recycled) return true;
    if (!nodedb_wal__decode_preamble(head, &segment)) return false;
    if (segment.epoch >= w->segments.next_epoch) w->segments.next_epoch = segment.epoch + 1;
    return true;
}

/* Keeps the usable spares. Removes the others, and the one that a crash left half prepared. */
static void nodedb_wal__adopt_spares(nodedb_wal *w, const nodedb_wal__list *list) {
    char path[NODEDB_WAL__PATH_BYTES];
    w->spares.next_number = list->spare_next;
    if (list->saw_tmp) {
        (void)snprintf(path, sizeof path, "%s/prepare.tmp", w->dir);
        (void)w->io.unlink(w->io.ctx, path);
    }
    for (size_t i = 0; i < list->spare_count; i++) {
        nodedb_wal__spare_path(path, w->dir, list->spares[i]);
        if (w->spares.pool_count < NODEDB_WAL__MAX_SPARES &&
            nodedb_wal__spare_usable(w, path, &w->spares.pool[w->spares.pool_count].recycled) &&
            !(w->config.no_recycling && w->spares.pool[w->spares.pool_count].recycled))
            w->spares.pool[w->spares.pool_count++].number = list->spares[i];
        else (void)w->io.unlink(w->io.ctx, path);
    }
}

/* A new log: the name of its directory must be durable before anything in it counts. */
static nodedb_status nodedb_wal__sync_parent(nodedb_wal *w, nodedb_error *err) {
    char path[NODEDB_WAL__PATH_BYTES];
    char *slash;
    int fd, error;
    (void)snprintf(path, sizeof path, "%s", w->dir);
    slash = strrchr(path, '/');
    if (slash == path) slash[1] = 0;
    else if (slash != NULL) *slash = 0;
    else (void)snprintf(path, sizeof path, ".");
    fd = w->io.open(w->io.ctx, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return nodedb_fail(err, NODEDB_ERR_IO, -fd, "cannot open %s to make the name of %s durable", path, w->dir);
    error = w->io.sync(w->io.ctx, fd);
    (void)w->io.close(w->io.ctx, fd);
    return error == 0 ? NODEDB_OK : nodedb_fail(err, NODEDB_ERR_IO, -error, "cannot sync %s", path);
}

static nodedb_status nodedb_wal__recover(nodedb_wal *w, nodedb_error *err) {
    nodedb_wal__list list;
    nodedb_status status = nodedb_wal__list_segments(&w->io, &w->config.allocator, w->dir, &list, err);
    if (status != NODEDB_OK) return status;
    w->segments.next_epoch = list.dead_highest + 1;
    for (size_t i = 0; i < list.count; i++)
        if (list.at[i].epoch >= w->segments.next_epoch) w->segments.next_epoch = list.at[i].epoch + 1;
    memcpy(w->segments.dead, list.dead, sizeof w->segments.dead);
    w->segments.dead_count = list.dead_count;
    status = nodedb_wal__check_keys(w, &list, err);
    if (status == NODEDB_OK) status = nodedb_wal__sync_found(w, &list, err);
    if (status == NODEDB_OK) status = nodedb_wal__recover_tombstones(w, &list, err);
    if (status == NODEDB_OK) {
        nodedb_wal__adopt_spares(w, &list);
        if (list.count > 0) status = nodedb_wal__find_end(w, &list, err);
        else {
            nodedb_wal__new_log(w);
            status = nodedb_wal__sync_parent(w, err);
        }
    }
    nodedb_wal__list_free(&list);
    return status;
}

/* ---- open ------------------------------------------------------------------------------------------------------- */

static bool nodedb_wal__check_config(const nodedb_wal_config *config, nodedb_error *err) {
    const char *wrong = NULL;
    if (config == NULL || config->dir == NULL || config->dir[0] == 0) wrong = "config.dir is missing";
    else if (strlen(config->dir) > NODEDB_WAL_MAX_DIR_BYTES) wrong = "config.dir is too long";
    else if (config->segment_bytes != 0 && config->segment_bytes < NODEDB_WAL_MIN_SEGMENT_BYTES)
        wrong = "config.segment_bytes is below 64 KiB";
    else if (config->groups != 0 && (config->groups < 2 || config->groups > NODEDB_WAL_MAX_GROUPS))
        wrong = "config.groups is not 2 to 16";
    else if (config->group_bytes > NODEDB_WAL_MAX_PAYLOAD_BYTES) wrong = "config.group_bytes is above 64 MiB";
    else if (config->first_lsn > NODEDB_WAL_MAX_FIRST_LSN) wrong = "config.first_lsn is above 2^62";
    else if (config->segment_bytes > INT64_MAX) wrong = "config.segment_bytes is more than a file can have";
    else if ((config->cipher.seal != NULL) != (config->cipher.open != NULL) ||
             (config->cipher.seal != NULL) != (config->cipher.key_id != NULL))
        wrong = "config.cipher has one of key_id, seal and open, but not all";
    if (wrong == NULL) return true;
    (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "cannot open a log: %s", wrong);
    return false;
}

/* The block: what direct writes must be aligned to here (statx, Linux 6.1), but never less than what disks write whole.
 * *direct becomes false where the file system has no direct writes. */
static uint32_t nodedb_wal__block_bytes(const char *dir, bool *direct) {
    uint32_t bytes = NODEDB_WAL_MIN_BLOCK_BYTES;
    (void)dir;
    (void)direct;
#if defined(STATX_DIOALIGN)
    {
        char path[NODEDB_WAL__PATH_BYTES];
        struct statx st;
        (void)snprintf(path, sizeof path, "%s/LOCK", dir);
        memset(&st, 0, sizeof st);
        if (statx(AT_FDCWD, path, 0, STATX_DIOALIGN, &st) == 0 && (st.stx_mask & STATX_DIOALIGN) != 0) {
            if (st.stx_dio_offset_align == 0) *direct = false;
            while (bytes < st.stx_dio_offset_align || bytes < st.stx_dio_mem_align) bytes *= 2;
        }
    }
#endif
    return bytes;
}

static nodedb_status nodedb_wal__open_dir(nodedb_wal *w, nodedb_error *err) {
    char path[NODEDB_WAL__PATH_BYTES];
    int error = w->io.make_dir(w->io.ctx, w->dir, 0755);
    if (error != 0 && error != -EEXIST)
        return nodedb_fail(err, nodedb_io_status(-error), -error, "cannot make the directory %s", w->dir);
    (void)snprintf(path, sizeof path, "%s/LOCK", w->dir);
    w->lock_fd = w->io.open(w->io.ctx, path, O_RDWR | O_CREAT, 0644);
    if (w->lock_fd < 0) {
        error = w->lock_fd;
        return nodedb_fail(err, nodedb_io_status(-error), -error, "cannot open %s", path);
    }
    error = w->io.lock(w->io.ctx, w->lock_fd);
    if (error == -EWOULDBLOCK)
        return nodedb_fail(err, NODEDB_ERR_LOCKED, 0, "the log in %s is in use: another writer holds %s", w->dir,
                            path);
    if (error != 0) return nodedb_fail(err, NODEDB_ERR_IO, -error, "cannot lock %s", path);
    w->dir_fd = w->io.open(w->io.ctx, w->dir, O_RDONLY | O_DIRECTORY, 0);
    if (w->dir_fd < 0) {
        error = w->dir_fd;
        return nodedb_fail(err, NODEDB_ERR_IO, -error, "cannot open the directory %s", w->dir);
    }
    return NODEDB_OK;
}

/* The buffers of all groups, one behind the other, in huge pages where the system gives them: a disk then gets a few
 * long pieces instead of 256 scattered pages for each MiB. */
static bool nodedb_wal__alloc_groups(nodedb_wal *w) {
    size_t align = w->block_bytes;
    if (__builtin_mul_overflow(w->config.group_bytes, w->config.groups, &w->groups.memory_bytes)) return false;
    if (w->groups.memory_bytes >= NODEDB_WAL__HUGE_PAGE_BYTES && align < NODEDB_WAL__HUGE_PAGE_BYTES)
        align = NODEDB_WAL__HUGE_PAGE_BYTES;
    w->groups.memory = (unsigned char *)nodedb__alloc(&w->config.allocator, w->groups.memory_bytes, align);
    if (w->groups.memory == NULL) return false;
#if defined(MADV_HUGEPAGE)
    if (align == NODEDB_WAL__HUGE_PAGE_BYTES)
        (void)madvise(w->groups.memory, w->groups.memory_bytes & ~(NODEDB_WAL__HUGE_PAGE_BYTES - 1), MADV_HUGEPAGE);
#endif
    memset(w->groups.memory, 0, w->groups.memory_bytes);
    for (uint32_t i = 0; i < w->config.groups; i++)
        w->groups.at[i].buffer = w->groups.memory + i * w->config.group_bytes;
    return true;
}

static void nodedb_wal__init_monotonic(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(condition, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

/* The lock is held for less time than it takes to fall asleep, so where the C library can, it spins first. */
static void nodedb_wal__init_lock(pthread_mutex_t *lock) {
#if defined(__GLIBC__)
    pthread_mutexattr_t attributes;
    (void)pthread_mutexattr_init(&attributes);
    (void)pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    (void)pthread_mutex_init(lock, &attributes);
    (void)pthread_mutexattr_destroy(&attributes);
#else
    (void)pthread_mutex_init(lock, NULL);
#endif
}

static void nodedb_wal__free(nodedb_wal *w) {
    nodedb_allocator allocator = w->config.allocator;
#if !defined(NODEDB_NO_LIBURING)
    /* the kernel still reads our buffers: a late write must not find other data in them */
    while (w->device.has_ring && nodedb_wal__submit_rest(w)) {
        nodedb_wal__completion done[NODEDB_WAL__MAX_OPS];
        w->device.in_kernel -= nodedb_wal__uring_take(w, true, done);
    }
    if (w->device.has_ring) io_uring_queue_exit(&w->device.ring);
#endif
    for (uint32_t i = 0; i < 2; i++)
        if (w->segments.files[i].fd >= 0) (void)w->io.close(w->io.ctx, w->segments.files[i].fd);
    if (w->spares.next.state != NODEDB_WAL__SPARE_NONE) (void)w->io.close(w->io.ctx, w->spares.next.fd);
    if (w->device.event_fd >= 0) (void)close(w->device.event_fd);
    if (w->dir_fd >= 0) (void)w->io.close(w->io.ctx, w->dir_fd);
    if (w->lock_fd >= 0) (void)w->io.close(w->io.ctx, w->lock_fd);
    for (uint32_t i = 0; i < w->config.groups; i++)
        nodedb__release(&allocator, w->groups.at[i].large, w->groups.at[i].large_bytes);
    nodedb__release(&allocator, w->groups.memory, w->groups.memory_bytes);
    nodedb__release(&allocator, w->segments.sealed, w->segments.sealed_capacity * sizeof *w->segments.sealed);
    nodedb_wal__tombstones_free(&w->tombstones, &allocator);
    nodedb__release(&allocator, w->spares.zeros, NODEDB_WAL__FILL_BYTES);
    nodedb__release(&allocator, w->segments.preamble, w->block_bytes);
    (void)pthread_cond_destroy(&w->groups.space);
    (void)pthread_cond_destroy(&w->lsns.moved);
    (void)pthread_mutex_destroy(&w->device.sync_lock);
    (void)pthread_mutex_destroy(&w->lock);
    nodedb__release(&allocator, w, sizeof *w);
}

/* A writer of this config, with its locks, and nothing open. */
static nodedb_wal *nodedb_wal__alloc(const nodedb_wal_config *config, nodedb_error *err) {
    nodedb_wal *w = (nodedb_wal *)nodedb__alloc_zero(&config->allocator, sizeof *w, NODEDB_CACHE_LINE_BYTES);
    if (w == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the log in %s", config->dir);
        return NULL;
    }
    memcpy(w->dir, config->dir, strlen(config->dir) + 1);
    for (size_t i = strlen(w->dir); i > 1 && w->dir[i - 1] == '/'; i--) w->dir[i - 1] = 0;
    w->config = *config;
    w->config.dir = w->dir;
    w->io = nodedb__io_or_posix(&config->io);
    w->lock_fd = w->dir_fd = w->device.event_fd = w->segments.files[0].fd = w->segments.files[1].fd = -1;
    if (w->config.segment_bytes == 0) w->config.segment_bytes = NODEDB_WAL_DEFAULT_SEGMENT_BYTES;
    if (w->config.group_bytes == 0) w->config.group_bytes = NODEDB_WAL_DEFAULT_GROUP_BYTES;
    if (w->config.groups == 0) w->config.groups = NODEDB_WAL_DEFAULT_GROUPS;
    nodedb_wal__init_lock(&w->lock);
    (void)pthread_mutex_init(&w->device.sync_lock, NULL);
    (void)pthread_cond_init(&w->groups.space, NULL);
    nodedb_wal__init_monotonic(&w->lsns.moved);
    return w;
}

/* The block of this file system, and memory in such blocks. */
static nodedb_status nodedb_wal__alloc_buffers(nodedb_wal *w, nodedb_error *err) {
    bool direct = !w->config.buffered;
    w->block_bytes = nodedb_wal__block_bytes(w->dir, &direct);
    w->open_flags = direct ? O_DIRECT : 0;
    if (!direct && !w->config.buffered) nodedb_wal__say_no_direct(w);
    w->config.segment_bytes = nodedb_wal__round_up(w->config.segment_bytes, w->block_bytes);
    w->config.group_bytes = (size_t)nodedb_wal__round_up(w->config.group_bytes, w->block_bytes);
    w->spares.zeros =
        (unsigned char *)nodedb__alloc_zero(&w->config.allocator, NODEDB_WAL__FILL_BYTES, w->block_bytes);
    w->segments.preamble =
        (unsigned char *)nodedb__alloc_zero(&w->config.allocator, w->block_bytes, w->block_bytes);
    if (w->spares.zeros != NULL && w->segments.preamble != NULL && nodedb_wal__alloc_groups(w)) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the buffers of the log in %s", w->dir);
}

static nodedb_status nodedb_wal__open_device(nodedb_wal *w, nodedb_error *err) {
    nodedb_wal__open_backend(w);
    if (w->config.backend != NODEDB_WAL_BACKEND_IO_URING || nodedb_wal__has_ring(w)) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "io_uring was demanded for the log in %s and is unavailable%s",
                       w->dir, w->open_flags != 0 ? "" : ": it is for direct writes");
}

/* The first segment of this writer. Where the disk is full, what is there can be read, and appending goes on when there
 * is room. */
static nodedb_status nodedb_wal__first_segment(nodedb_wal *w, nodedb_error *err) {
    nodedb_error why;
    uint64_t bytes = w->config.segment_bytes;
    nodedb_status status = nodedb_wal__spare_or_small(w, 0, &bytes, &why);
    if (status == NODEDB_OK) status = nodedb_wal__begin_segment(w, &why);
    if (status == NODEDB_ERR_DISK_FULL) nodedb_say(&w->config.logger, NODEDB_LOG_WARNING, "%s", why.message);
    if (status == NODEDB_OK || status == NODEDB_ERR_DISK_FULL) return NODEDB_OK;
    return nodedb_wal__hand_over(err, &why);
}

static nodedb_status nodedb_wal__open_event(nodedb_wal *w, nodedb_error *err) {
    w->device.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->device.event_fd >= 0) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_IO, errno, "no eventfd for the log in %s", w->dir);
}

NODEDB_WAL_API nodedb_wal *nodedb_wal_open(const nodedb_wal_config *config, nodedb_error *err) {
    nodedb_wal *w = nodedb_wal__check_config(config, err) ? nodedb_wal__alloc(config, err) : NULL;
    nodedb_status status;
    if (w == NULL) return NULL;
    status = nodedb_wal__open_dir(w, err);
    if (status == NODEDB_OK) status = nodedb_wal__alloc_buffers(w, err);
    if (status == NODEDB_OK) status = nodedb_wal__open_event(w, err);
    if (status == NODEDB_OK) status = nodedb_wal__recover(w, err);
    if (status == NODEDB_OK) status = nodedb_wal__open_device(w, err);
    if (status == NODEDB_OK) status = nodedb_wal__first_segment(w, err);
    nodedb_wal__close_refused_ring(w);
    if (status != NODEDB_OK) {
        nodedb_wal__free(w);
        return NULL;
    }
    (void)snprintf(w->description, sizeof w->description, "%s, %s, %u-byte blocks, %llu KiB segments",
                   nodedb_wal__has_ring(w) ? "io_uring" : "POSIX", w->open_flags != 0 ? "O_DIRECT" : "buffered",
                   (unsigned)w->block_bytes, (unsigned long long)(w->config.segment_bytes >> 10));
    return w;
}

/* ---- close ------------------------------------------------------------------------------------------------------ */

NODEDB_WAL_API nodedb_status nodedb_wal_close(nodedb_wal *w, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    nodedb_wal_record seal;
    uint64_t lsn = 0;
    if (w == NULL) return NODEDB_OK;
    (void)pthread_mutex_lock(&w->lock);
    if (w->failed) status = nodedb_wal__failed(w, err);
    else if (w->lsns.wrote) {
        status = nodedb_wal__wait_and_unlock(w, w->lsns.next - 1, err);
        (void)pthread_mutex_lock(&w->lock);
    }
    if (status == NODEDB_OK && w->lsns.wrote && w->segments.seal_lsn + 1 != w->lsns.next) { /* no seal behind a seal */
        w->segments.rollover = false; /* not for the seal alone */
        memset(&seal, 0, sizeof seal);
        if (status == NODEDB_OK) status = nodedb_wal__append_locked(w, &seal, NODEDB_WAL__FLAG_SEAL, &lsn, err);
        if (status == NODEDB_OK) {
            status = nodedb_wal__wait_and_unlock(w, lsn, err);
            (void)pthread_mutex_lock(&w->lock);
        } else if (status == NODEDB_ERR_DISK_FULL)
            status = NODEDB_OK; /* all records are durable; the seal is a convenience */
    }
    if (status == NODEDB_OK && nodedb_wal__save_tombstones(w, NULL) != NODEDB_OK && w->failed)
        status = nodedb_wal__failed(w, err); /* without a failure, recovery finds them in the last two segments */
    while (w->spares.next.busy && !w->failed) nodedb_wal__reap(w, true, NODEDB_WAL__REAPER_WAITER);
    (void)pthread_mutex_unlock(&w->lock);
    nodedb_wal__free(w);
    return status;
}

/* ===================================================================================================================
 * TRANSACTIONS AND TOMBSTONES: records that mean something to the log
 *
 * A transaction is one record whose payload is records. An anchor gives an LSN a time. A tombstone drops a
 * collection: what is below it is skipped by readers, even in segments that are read without the one that held the
 * tombstone. For that all durable tombstones are also in a file, "tombstones", which is replaced as a whole.
 * ================================================================================================================ */

/* ---- transactions ----------------------------------------------------------------------------------------------- */

/* The payload of a transaction: a header, then for each record this sub-header, its payload, and zeros up to a multiple
 * of 8. */
enum {
    NODEDB_WAL__TRANSACTION_COUNT_AT = 0,
    NODEDB_WAL__TRANSACTION_ZERO_AT = 4,
    NODEDB_WAL__TRANSACTION_HEADER_BYTES = 8,
    NODEDB_WAL__SUB_TYPE_AT = 0,
    NODEDB_WAL__SUB_ZERO_AT = 2,
    NODEDB_WAL__SUB_TENANT_AT = 4,
    NODEDB_WAL__SUB_VSHARD_AT = 8,
    NODEDB_WAL__SUB_PAYLOAD_BYTES_AT = 12,
    NODEDB_WAL__SUB_DATABASE_AT = 16,
    NODEDB_WAL__SUB_HEADER_BYTES = 24
};

static void nodedb_wal__encode_parts(unsigned char *at, const nodedb_wal_record *parts, size_t count) {
    nodedb_put_u32(at + NODEDB_WAL__TRANSACTION_COUNT_AT, (uint32_t)count);
    nodedb_put_u32(at + NODEDB_WAL__TRANSACTION_ZERO_AT, 0);
    at += NODEDB_WAL__TRANSACTION_HEADER_BYTES;
    for (size_t i = 0; i < count; i++) {
        size_t end = (size_t)NODEDB_WAL__SUB_HEADER_BYTES + parts[i].payload_bytes, padded = (end + 7) & ~(size_t)7;
        nodedb_put_u16(at + NODEDB_WAL__SUB_TYPE_AT, parts[i].type);
        nodedb_put_u16(at + NODEDB_WAL__SUB_ZERO_AT, 0);
        nodedb_put_u32(at + NODEDB_WAL__SUB_TENANT_AT, parts[i].tenant);
        nodedb_put_u32(at + NODEDB_WAL__SUB_VSHARD_AT, parts[i].vshard);
        nodedb_put_u32(at + NODEDB_WAL__SUB_PAYLOAD_BYTES_AT, parts[i].payload_bytes);
        nodedb_put_u64(at + NODEDB_WAL__SUB_DATABASE_AT, parts[i].database);
        if (parts[i].payload_bytes > 0)
            memcpy(at + NODEDB_WAL__SUB_HEADER_BYTES, parts[i].payload, parts[i].payload_bytes);
        memset(at + end, 0, padded - end);
        at += padded;
    }
}

/* What may stand in a transaction: neither another one, nor a tombstone, which needs an LSN of its own. */
static bool nodedb_wal__part_type(uint16_t type) {
    return (type & NODEDB_WAL_ENCRYPTED) == 0 && !nodedb_wal__is_tombstone(type) &&
           (type & NODEDB_WAL_TYPE_MASK) != NODEDB_WAL_TYPE_TRANSACTION;
}

/* Reads the part at `p`, `left` bytes before the payload's end. Returns how many bytes it takes, or 0 where no valid
 * part stands there. Sets what the part itself says; the rest of *sub stays. */
static size_t nodedb_wal__decode_part(const unsigned char *p, size_t left, nodedb_wal_record *sub) {
    size_t end, padded;
    if (left < NODEDB_WAL__SUB_HEADER_BYTES) return 0;
    sub->type = nodedb_get_u16(p + NODEDB_WAL__SUB_TYPE_AT);
    sub->tenant = nodedb_get_u32(p + NODEDB_WAL__SUB_TENANT_AT);
    sub->vshard = nodedb_get_u32(p + NODEDB_WAL__SUB_VSHARD_AT);
    sub->payload_bytes = nodedb_get_u32(p + NODEDB_WAL__SUB_PAYLOAD_BYTES_AT);
    sub->database = nodedb_get_u64(p + NODEDB_WAL__SUB_DATABASE_AT);
    sub->payload = p + NODEDB_WAL__SUB_HEADER_BYTES;
    if (nodedb_get_u16(p + NODEDB_WAL__SUB_ZERO_AT) != 0 || !nodedb_wal__part_type(sub->type)) return 0;
    if (sub->payload_bytes > left - NODEDB_WAL__SUB_HEADER_BYTES) return 0;
    end = (size_t)NODEDB_WAL__SUB_HEADER_BYTES + sub->payload_bytes;
    padded = (end + 7) & ~(size_t)7;
    return padded <= left && nodedb_wal__all_zero(p + end, padded - end) ? padded : 0;
}

/* True if this is a valid transaction's payload, from its first to its last byte. If not, *at is the offset up to which
 * it is. *unknown (if not NULL) becomes the first required type in it that this version does not know, or 0. */
static bool nodedb_wal__check_parts(const nodedb_wal_record *record, size_t *at, uint16_t *unknown) {
    const unsigned char *p = (const unsigned char *)record->payload;
    size_t bytes = record->payload_bytes;
    nodedb_wal_record sub;
    uint32_t count;
    *at = 0;
    if (unknown != NULL) *unknown = 0;
    if (bytes < NODEDB_WAL__TRANSACTION_HEADER_BYTES) return false;
    count = nodedb_get_u32(p + NODEDB_WAL__TRANSACTION_COUNT_AT);
    if (count == 0 || count > NODEDB_WAL_MAX_TRANSACTION_RECORDS ||
        nodedb_get_u32(p + NODEDB_WAL__TRANSACTION_ZERO_AT) != 0)
        return false;
    *at = NODEDB_WAL__TRANSACTION_HEADER_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        size_t took = nodedb_wal__decode_part(p + *at, bytes - *at, &sub);
        if (took == 0) return false;
        if (unknown != NULL && *unknown == 0 && (sub.type & NODEDB_WAL_REQUIRED) != 0 &&
            !nodedb_wal__known_type(sub.type))
            *unknown = sub.type;
        *at += took;
    }
    return *at == bytes;
}

/* The record that `count` records become together, without its payload. */
static nodedb_status nodedb_wal__outer_record(const nodedb_wal_record *parts, size_t count, nodedb_wal_record *outer,
                                              nodedb_error *err) {
    uint64_t bytes = NODEDB_WAL__TRANSACTION_HEADER_BYTES;
    if (parts == NULL || count == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a transaction needs a log and records");
    if (count > NODEDB_WAL_MAX_TRANSACTION_RECORDS)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "a transaction of %zu records passes the limit of %d", count,
                            NODEDB_WAL_MAX_TRANSACTION_RECORDS);
    for (size_t i = 0; i < count; i++) {
        if (parts[i].payload == NULL && parts[i].payload_bytes > 0)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "record %zu of a transaction has no payload", i);
        if (!nodedb_wal__part_type(parts[i].type))
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                                "record %zu of a transaction has the type %u: no transaction, tombstone, bit 14 there",
                                i, (unsigned)parts[i].type);
        if (!nodedb_wal__known_type(parts[i].type))
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "record %zu of a transaction: there is no type %u", i,
                                (unsigned)(parts[i].type & NODEDB_WAL_TYPE_MASK));
        bytes += NODEDB_WAL__SUB_HEADER_BYTES + (((uint64_t)parts[i].payload_bytes + 7) & ~(uint64_t)7);
    }
    if (bytes > NODEDB_WAL_MAX_PAYLOAD_BYTES)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "a transaction of %llu bytes passes the limit of %u",
                            (unsigned long long)bytes, (unsigned)NODEDB_WAL_MAX_PAYLOAD_BYTES);
    memset(outer, 0, sizeof *outer);
    outer->type = NODEDB_WAL_TYPE_TRANSACTION;
    outer->tenant = parts[0].tenant;
    outer->vshard = parts[0].vshard;
    outer->database = parts[0].database;
    outer->payload_bytes = (uint32_t)bytes;
    return NODEDB_OK;
}

NODEDB_WAL_API nodedb_status nodedb_wal_append_transaction(nodedb_wal *w, const nodedb_wal_record *records,
                                                           size_t count, uint64_t *lsn, nodedb_error *err) {
    nodedb_wal_record outer;
    nodedb_status status = nodedb_wal__outer_record(w != NULL ? records : NULL, count, &outer, err);
    if (status != NODEDB_OK) return status;
    (void)pthread_mutex_lock(&w->lock);
    status = nodedb_wal__append_parts(w, &outer, records, count, 0, lsn, err);
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_commit_transaction(nodedb_wal *w, const nodedb_wal_record *records,
                                                           size_t count, uint64_t *lsn, nodedb_error *err) {
    nodedb_status status;
    uint64_t own = 0;
    while ((status = nodedb_wal_append_transaction(w, records, count, &own, err)) == NODEDB_ERR_AGAIN)
        (void)nodedb_wal_wait(w, nodedb_wal_durable_lsn(w) + 1, NULL); /* INVALID if all is durable by now */
    if (status == NODEDB_OK) status = nodedb_wal_wait(w, own, err);
    if (lsn != NULL && status == NODEDB_OK) *lsn = own;
    return status;
}

NODEDB_WAL_API nodedb_status nodedb_wal_transaction_open(const nodedb_wal_record *record, nodedb_wal_transaction *tx,
                                                         nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    uint16_t unknown;
    size_t at;
    if (tx != NULL) memset(tx, 0, sizeof *tx); /* with a count of 0 nothing is handed out */
    if (record == NULL || tx == NULL ||
        (record->type & (NODEDB_WAL_TYPE_MASK | NODEDB_WAL_ENCRYPTED)) != NODEDB_WAL_TYPE_TRANSACTION ||
        (record->payload == NULL && record->payload_bytes > 0))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_transaction_open needs a transaction's record");
    tx->record = *record;
    if (!nodedb_wal__check_parts(record, &at, &unknown))
        status = nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                              "record %llu is no transaction: byte %zu of its payload is not as it must be",
                              (unsigned long long)record->lsn, at);
    else if (unknown != 0)
        status = nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0,
                              "the transaction of record %llu holds the unknown required type %u",
                              (unsigned long long)record->lsn, (unsigned)(unknown & NODEDB_WAL_TYPE_MASK));
    if (status != NODEDB_OK) {
        if (err != NULL) err->lsn = record->lsn;
        return status;
    }
    tx->count = nodedb_get_u32(record->payload);
    tx->at = NODEDB_WAL__TRANSACTION_HEADER_BYTES;
    return NODEDB_OK;
}

NODEDB_WAL_API bool nodedb_wal_transaction_next(nodedb_wal_transaction *tx, nodedb_wal_record *sub) {
    const nodedb_wal_reader *r;
    if (tx == NULL || sub == NULL) return false;
    r = (const nodedb_wal_reader *)tx->record.source;
    while (tx->next < tx->count) {
        const unsigned char *payload = (const unsigned char *)tx->record.payload;
        size_t took;
        memset(sub, 0, sizeof *sub);
        sub->lsn = tx->record.lsn;
        sub->watermark = tx->record.watermark;
        took = nodedb_wal__decode_part(payload + tx->at, tx->record.payload_bytes - tx->at, sub);
        assert(took > 0); /* nodedb_wal_transaction_open has been over it */
        tx->at += took;
        tx->next++;
        if (!nodedb_wal__known_type(sub->type)) tx->skipped++;
        else if (r != NULL && nodedb_wal__is_dropped(r, sub)) tx->dropped++;
        else return true;
    }
    return false;
}

/* ---- anchors ---------------------------------------------------------------------------------------------------- */

NODEDB_WAL_API nodedb_status nodedb_wal_append_anchor(nodedb_wal *w, uint64_t unix_ns, uint64_t *lsn,
                                                      nodedb_error *err) {
    unsigned char payload[8];
    nodedb_wal_record record;
    if (unix_ns == 0) {
        struct timespec now;
        (void)clock_gettime(CLOCK_REALTIME, &now);
        unix_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    }
    nodedb_put_u64(payload, unix_ns);
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_LSN_ANCHOR;
    record.payload = payload;
    record.payload_bytes = sizeof payload;
    return nodedb_wal_append(w, &record, lsn, err);
}

NODEDB_WAL_API nodedb_status nodedb_wal_lsn_at(const nodedb_wal_reader_config *config, uint64_t unix_ns, uint64_t *lsn,
                                               nodedb_error *err) {
    nodedb_wal_reader_config reading;
    nodedb_wal_record record;
    nodedb_wal_reader *r;
    nodedb_error failure;
    nodedb_status status;
    bool found = false;
    if (config == NULL || lsn == NULL)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_lsn_at needs a config and a place for the LSN");
    memset(&failure, 0, sizeof failure);
    reading = *config;
    reading.keep_dropped = true; /* anchors are of no collection */
    reading.keep_encrypted = false;
    r = nodedb_wal__reader_new(&reading, false, &failure);
    status = failure.status;
    if (r != NULL) {
        r->only = NODEDB_WAL_TYPE_LSN_ANCHOR;
        while ((status = nodedb_wal_reader_next(r, &record, &failure)) == NODEDB_OK)
            if (record.payload_bytes == 8 && nodedb_get_u64(record.payload) <= unix_ns)
                *lsn = record.lsn, found = true;
        nodedb_wal_reader_close(r);
    }
    if (status == NODEDB_ERR_AGAIN && found) return NODEDB_OK;
    if (status == NODEDB_ERR_AGAIN)
        return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "no anchor in %s is as old as %llu ns since 1970",
                            config->dir, (unsigned long long)unix_ns);
    if (err != NULL) *err = failure;
    return status;
}

/* ---- tombstones: their list, and their file --------------------------------------------------------------------- */

/* The file of tombstones: a header, the entries, then a CRC-32C of both. */
enum {
    NODEDB_WAL__STONES_MAGIC_AT = 0, /* "WALT" */
    NODEDB_WAL__STONES_VERSION_AT = 4,
    NODEDB_WAL__STONES_LOG_ID_AT = 8,
    NODEDB_WAL__STONES_COVERED_LSN_AT = 16,
    NODEDB_WAL__STONES_COUNT_AT = 24,
    NODEDB_WAL__STONES_HEADER_BYTES = 32,
    NODEDB_WAL__STONE_LSN_AT = 0,
    NODEDB_WAL__STONE_COLLECTION_AT = 8,
    NODEDB_WAL__STONE_TENANT_AT = 16,
    NODEDB_WAL__STONE_ZERO_AT = 20,
    NODEDB_WAL__STONE_BYTES = 24,
    NODEDB_WAL__STONES_PER_READ = 128
};

static void nodedb_wal__tombstones_free(nodedb_wal__tombstones *t, const nodedb_allocator *allocator) {
    nodedb__release(allocator, t->at, t->capacity * sizeof *t->at);
    memset(t, 0, sizeof *t);
}

static int nodedb_wal__compare_collections(const nodedb_wal_tombstone *a, uint32_t tenant, uint64_t collection) {
    if (a->tenant != tenant) return a->tenant < tenant ? -1 : 1;
    return (a->collection > collection) - (a->collection < collection);
}

static int nodedb_wal__by_collection(const void *left, const void *right) {
    const nodedb_wal_tombstone *a = (const nodedb_wal_tombstone *)left, *b = (const nodedb_wal_tombstone *)right;
    int order = nodedb_wal__compare_collections(a, b->tenant, b->collection);
    return order != 0 ? order : (a->lsn > b->lsn) - (a->lsn < b->lsn);
}

static int nodedb_wal__by_lsn(const void *left, const void *right) {
    const nodedb_wal_tombstone *a = (const nodedb_wal_tombstone *)left, *b = (const nodedb_wal_tombstone *)right;
    return (a->lsn > b->lsn) - (a->lsn < b->lsn);
}

/* Sorts by collection and keeps the newest of each. Returns how many are left. */
static size_t nodedb_wal__newest_tombstones(nodedb_wal_tombstone *at, size_t count) {
    size_t i, n = 0;
    if (count > 1) qsort(at, count, sizeof *at, nodedb_wal__by_collection);
    for (i = 0; i < count; i++) {
        if (n > 0 && nodedb_wal__compare_collections(&at[n - 1], at[i].tenant, at[i].collection) == 0) n--;
        at[n++] = at[i];
    }
    return n;
}

static uint64_t nodedb_wal__collection_of(nodedb_wal_collection_fn collection_of, void *ctx,
                                          const nodedb_wal_record *record) {
    return collection_of != NULL ? collection_of(ctx, record) : record->database;
}

static void nodedb_wal__tombstones_path(char *path, const char *dir, const char *suffix) {
    (void)snprintf(path, NODEDB_WAL__PATH_BYTES, "%s/tombstones%s", dir, suffix);
}

/* Reads the entries behind the header, whose checksum is `crc`, and the checksum behind them. False: they are damaged,
 * or, with *error, cannot be read. */
static bool nodedb_wal__read_tombstones(const nodedb_io *io, int fd, uint32_t crc, nodedb_wal__tombstones *t,
                                        int *error) {
    unsigned char chunk[NODEDB_WAL__STONES_PER_READ * NODEDB_WAL__STONE_BYTES];
    uint64_t offset = NODEDB_WAL__STONES_HEADER_BYTES, before = 0;
    while (t->count < t->in_file) {
        size_t left = t->in_file - t->count;
        size_t n = left < NODEDB_WAL__STONES_PER_READ ? left : (size_t)NODEDB_WAL__STONES_PER_READ;
        *error = nodedb__read_all(io, fd, chunk, n * NODEDB_WAL__STONE_BYTES, offset);
        if (*error != 0) return false;
        crc = nodedb_crc32c(crc, chunk, n * NODEDB_WAL__STONE_BYTES);
        offset += n * NODEDB_WAL__STONE_BYTES;
        for (size_t i = 0; i < n; i++) {
            const unsigned char *p = chunk + i * NODEDB_WAL__STONE_BYTES;
            nodedb_wal_tombstone *to = &t->at[t->count++];
            to->lsn = nodedb_get_u64(p + NODEDB_WAL__STONE_LSN_AT);
            to->collection = nodedb_get_u64(p + NODEDB_WAL__STONE_COLLECTION_AT);
            to->tenant = nodedb_get_u32(p + NODEDB_WAL__STONE_TENANT_AT);
            if (to->lsn <= before || to->lsn > t->covered_lsn) return false;
            before = to->lsn;
        }
    }
    *error = nodedb__read_all(io, fd, chunk, 4, offset);
    return *error == 0 && nodedb_get_u32(chunk) == crc;
}

/* Reads the file of tombstones, open as `fd`, of the log that `last` is a segment of. */
static nodedb_status nodedb_wal__decode_tombstones(const nodedb_io *io, const nodedb_allocator *allocator, int fd,
                                                   const char *path, const nodedb_wal__segment *last,
                                                   nodedb_wal__tombstones *t, nodedb_error *err) {
    unsigned char head[NODEDB_WAL__STONES_HEADER_BYTES];
    int64_t size = io->size(io->ctx, fd);
    int error = size < 0 ? (int)size : nodedb__read_all(io, fd, head, sizeof head, 0);
    bool good = error == 0 && memcmp(head, "WALT", 4) == 0 &&
                nodedb_get_u16(head + NODEDB_WAL__STONES_VERSION_AT) == NODEDB_WAL_FORMAT_VERSION;
    if (good) {
        t->covered_lsn = nodedb_get_u64(head + NODEDB_WAL__STONES_COVERED_LSN_AT);
        t->in_file = nodedb_get_u32(head + NODEDB_WAL__STONES_COUNT_AT);
        good = t->in_file <= NODEDB_WAL_MAX_TOMBSTONES &&
               (uint64_t)size == sizeof head + 4 + (uint64_t)t->in_file * NODEDB_WAL__STONE_BYTES;
    }
    if (good && t->in_file > 0) {
        t->capacity = t->in_file;
        t->at = (nodedb_wal_tombstone *)nodedb__alloc_zero(allocator, t->capacity * sizeof *t->at, 8);
        if (t->at == NULL) {
            t->capacity = 0;
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the %u tombstones of %s",
                                (unsigned)t->in_file, path);
        }
    }
    good = good && nodedb_wal__read_tombstones(io, fd, nodedb_crc32c(0, head, sizeof head), t, &error);
    if (error != 0 && error != -ENODATA)
        return nodedb_fail(err, NODEDB_ERR_IO, -error, "cannot read %s", nodedb__path_end(path));
    if (!good)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                            "%s is damaged or not of this version: without it dropped collections would come back",
                            nodedb__path_end(path));
    if (last == NULL || nodedb_get_u64(head + NODEDB_WAL__STONES_LOG_ID_AT) != last->log_id)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s belongs to another log than the segments beside it",
                            nodedb__path_end(path));
    return NODEDB_OK;
}

/* Loads the file of tombstones of the log whose last segment is `last` (NULL: it has none). */
static nodedb_status nodedb_wal__load_tombstones(const nodedb_io *io, const nodedb_allocator *allocator,
                                                 const char *dir, const nodedb_wal__segment *last,
                                                 nodedb_wal__tombstones *t, nodedb_error *err) {
    char path[NODEDB_WAL__PATH_BYTES];
    nodedb_status status;
    int fd;
    memset(t, 0, sizeof *t);
    nodedb_wal__tombstones_path(path, dir, "");
    fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd == -ENOENT && (last == NULL || last->tombstones == 0)) return NODEDB_OK;
    if (fd == -ENOENT)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                            "%s is missing, and segment %020llu was begun with %u tombstones in it: without it dropped "
                            "collections would come back",
                            nodedb__path_end(path), (unsigned long long)last->first_lsn, (unsigned)last->tombstones);
    if (fd < 0) return nodedb_fail(err, nodedb_io_status(-fd), -fd, "cannot open %s", nodedb__path_end(path));
    status = nodedb_wal__decode_tombstones(io, allocator, fd, path, last, t, err);
    (void)io->close(io->ctx, fd);
    if (status != NODEDB_OK) nodedb_wal__tombstones_free(t, allocator);
    return status;
}

/* ---- tombstones: what a reader skips ---------------------------------------------------------------------------- */

/* True if a tombstone above it has dropped this record's collection. */
static bool nodedb_wal__is_dropped(const nodedb_wal_reader *r, const nodedb_wal_record *record) {
    size_t low = 0, high = r->tombstones.count;
    uint64_t collection;
    if (record->lsn >= r->dropped_below) return false;
    if ((record->type & NODEDB_WAL_ENCRYPTED) != 0 && r->config.collection_of != NULL)
        return false; /* kept as it is stored: nobody can see in its payload what collection it is of */
    switch (record->type & NODEDB_WAL_TYPE_MASK) {
    case NODEDB_WAL_TYPE_NOOP: case NODEDB_WAL_TYPE_TRANSACTION: case NODEDB_WAL_TYPE_CHECKPOINT:
    case NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE: case NODEDB_WAL_TYPE_LSN_ANCHOR: return false; /* of no collection */
    default: break;
    }
    collection = nodedb_wal__collection_of(r->config.collection_of, r->config.collection_ctx, record);
    if (collection == NODEDB_WAL_NO_COLLECTION) return false;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = nodedb_wal__compare_collections(&r->tombstones.at[middle], record->tenant, collection);
        if (order == 0) return record->lsn < r->tombstones.at[middle].lsn;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return false;
}

/* Loads what this reader drops. A follower hands out everything. For the other readers, what the file says is dead
 * is dead from the beginning. */
static nodedb_status nodedb_wal__reader_tombstones(nodedb_wal_reader *r, nodedb_error *err) {
    nodedb_wal__tombstones *t = &r->tombstones;
    nodedb_status status;
    if (r->config.follow != NULL || r->config.keep_dropped || r->config.keep_encrypted) return NODEDB_OK;
    status = nodedb_wal__load_tombstones(&r->io, &r->config.allocator, r->dir, &r->list.at[r->list.count - 1], t, err);
    if (status != NODEDB_OK) return status;
    while (r->config.until_lsn != 0 && t->count > 0 && t->at[t->count - 1].lsn > r->config.until_lsn) t->count--;
    if (t->count > 0) r->dropped_below = t->at[t->count - 1].lsn; /* the file is in the order of LSNs */
    t->count = nodedb_wal__newest_tombstones(t->at, t->count);
    return NODEDB_OK;
}

/* ---- tombstones: of the writer ---------------------------------------------------------------------------------- */

static size_t nodedb_wal__durable_tombstones(const nodedb_wal *w) {
    size_t n = w->tombstones.count;
    while (n > 0 && w->tombstones.at[n - 1].lsn > w->lsns.durable) n--;
    return n;
}

/* Keeps the newest durable tombstone of each collection. One that is not durable yet replaces none, as a crash may lose
 * it. Returns how many durable ones there are then. */
static size_t nodedb_wal__tombstones_compact(nodedb_wal *w) {
    nodedb_wal__tombstones *t = &w->tombstones;
    size_t durable = nodedb_wal__durable_tombstones(w);
    size_t kept;
    if (durable == t->compact) return durable;
    kept = nodedb_wal__newest_tombstones(t->at, durable);
    if (kept > 1) qsort(t->at, kept, sizeof *t->at, nodedb_wal__by_lsn);
    if (durable > kept) memmove(t->at + kept, t->at + durable, (t->count - durable) * sizeof *t->at);
    t->count -= durable - kept;
    t->compact = kept;
    return kept;
}

/* The entry of a tombstone that has no LSN yet. */
static void nodedb_wal__tombstone_of(const nodedb_wal *w, const nodedb_wal_record *record,
                                     nodedb_wal_tombstone *stone) {
    memset(stone, 0, sizeof *stone);
    stone->tenant = record->tenant;
    stone->collection = nodedb_wal__collection_of(w->config.collection_of, w->config.collection_ctx, record);
}

/* Reserves a place for one more, before its record has an LSN: so a record that has one is never missing here. */
static nodedb_status nodedb_wal__tombstone_reserve(nodedb_wal *w, const nodedb_wal_record *record,
                                                   nodedb_wal_tombstone *stone, nodedb_error *err) {
    nodedb_wal__tombstones *t = &w->tombstones;
    nodedb_wal__tombstone_of(w, record, stone);
    if (stone->collection == NODEDB_WAL_NO_COLLECTION)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "a tombstone needs a collection, and %llu is none",
                           (unsigned long long)NODEDB_WAL_NO_COLLECTION);
    if (t->count + t->reserved >= NODEDB_WAL_MAX_TOMBSTONES) (void)nodedb_wal__tombstones_compact(w);
    if (t->count + t->reserved >= NODEDB_WAL_MAX_TOMBSTONES)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0,
                           "the log in %s has %d tombstones: nodedb_wal_forget_tombstones those that no segment needs",
                           nodedb__path_end(w->dir), NODEDB_WAL_MAX_TOMBSTONES);
    if (t->count + t->reserved >= t->capacity) {
        nodedb_wal_tombstone *grown = (nodedb_wal_tombstone *)nodedb_wal__grow(
            &w->config.allocator, t->at, t->count, &t->capacity, sizeof *grown, 64);
        if (grown == NULL)
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the tombstones of %s",
                               nodedb__path_end(w->dir));
        t->at = grown;
    }
    t->reserved++;
    return NODEDB_OK;
}

/* Reserves a place for each tombstone among the records: for all of them, or on an error for none. *reserved becomes
 * how many places; who appends fewer takes the rest back from tombstones.reserved. *stone: the entry of the last. */
static nodedb_status nodedb_wal__tombstones_reserve(nodedb_wal *w, const nodedb_wal_record *records, size_t count,
                                                    nodedb_wal_tombstone *stone, size_t *reserved, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    *reserved = 0;
    for (size_t i = 0; i < count && status == NODEDB_OK; i++) {
        if (!nodedb_wal__is_tombstone(records[i].type)) continue;
        status = nodedb_wal__tombstone_reserve(w, &records[i], stone, err);
        if (status == NODEDB_OK) ++*reserved;
    }
    if (status == NODEDB_OK) return NODEDB_OK;
    w->tombstones.reserved -= *reserved;
    *reserved = 0;
    return status;
}

/* The record has its LSN: its entry takes the place that was reserved for it. */
static void nodedb_wal__tombstone_add(nodedb_wal *w, const nodedb_wal_tombstone *stone, uint64_t lsn) {
    nodedb_wal__tombstones *t = &w->tombstones;
    assert(t->reserved > 0 && t->count < t->capacity);
    assert(t->count == 0 || t->at[t->count - 1].lsn < lsn);
    t->reserved--;
    t->at[t->count] = *stone;
    t->at[t->count++].lsn = lsn;
}

/* Writes header, entries and checksum, one block at a time through the preamble's block, which nothing else needs now.
 * 0 or -errno. */
static int nodedb_wal__encode_tombstones(nodedb_wal *w, int fd, const nodedb_wal_tombstone *at, size_t count) {
    unsigned char *block = w->segments.preamble;
    size_t used = NODEDB_WAL__STONES_HEADER_BYTES;
    uint64_t offset = 0;
    uint32_t crc = 0;
    int error = 0;
    memset(block, 0, used);
    memcpy(block + NODEDB_WAL__STONES_MAGIC_AT, "WALT", 4);
    nodedb_put_u16(block + NODEDB_WAL__STONES_VERSION_AT, NODEDB_WAL_FORMAT_VERSION);
    nodedb_put_u64(block + NODEDB_WAL__STONES_LOG_ID_AT, w->segments.log_id);
    nodedb_put_u64(block + NODEDB_WAL__STONES_COVERED_LSN_AT, w->lsns.durable);
    nodedb_put_u32(block + NODEDB_WAL__STONES_COUNT_AT, (uint32_t)count);
    for (size_t i = 0; i <= count && error == 0; i++) {
        if (i == count || used + NODEDB_WAL__STONE_BYTES > w->block_bytes) {
            crc = nodedb_crc32c(crc, block, used);
            error = nodedb__write_all(&w->io, fd, block, used, offset);
            offset += used;
            used = 0;
        }
        if (i == count) break;
        nodedb_put_u64(block + used + NODEDB_WAL__STONE_LSN_AT, at[i].lsn);
        nodedb_put_u64(block + used + NODEDB_WAL__STONE_COLLECTION_AT, at[i].collection);
        nodedb_put_u32(block + used + NODEDB_WAL__STONE_TENANT_AT, at[i].tenant);
        nodedb_put_u32(block + used + NODEDB_WAL__STONE_ZERO_AT, 0);
        used += NODEDB_WAL__STONE_BYTES;
    }
    nodedb_put_u32(block, crc);
    return error != 0 ? error : nodedb__write_all(&w->io, fd, block, 4, offset);
}

/* Puts a new file in the place of the old one. 0 or -errno; *harmless: the new file could not be opened, or the disk is
 * full, and the old file stands. */
static int nodedb_wal__replace_tombstones(nodedb_wal *w, const nodedb_wal_tombstone *at, size_t count,
                                          bool *harmless) {
    char from[NODEDB_WAL__PATH_BYTES], to[NODEDB_WAL__PATH_BYTES];
    int error, fd;
    *harmless = true;
    nodedb_wal__tombstones_path(from, w->dir, ".tmp");
    nodedb_wal__tombstones_path(to, w->dir, "");
    fd = w->io.open(w->io.ctx, from, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) return fd;
    error = nodedb_wal__encode_tombstones(w, fd, at, count);
    if (error == 0) error = w->io.sync(w->io.ctx, fd);
    (void)w->io.close(w->io.ctx, fd);
    if (error == 0) error = w->io.rename(w->io.ctx, from, to);
    *harmless = nodedb_io_status(-error) == NODEDB_ERR_DISK_FULL;
    if (error == 0) return w->io.sync(w->io.ctx, w->dir_fd);
    (void)w->io.unlink(w->io.ctx, from);
    return error;
}

/* Writes the durable tombstones from from_lsn on into the file. Where the disk is full, spare segments give way: a
 * truncation waits for this, so no other space would ever become free. */
static nodedb_status nodedb_wal__write_tombstones(nodedb_wal *w, uint64_t from_lsn, nodedb_error *err) {
    nodedb_wal__tombstones *t = &w->tombstones;
    size_t durable = nodedb_wal__tombstones_compact(w), first = 0;
    bool harmless;
    int error;
    while (first < durable && t->at[first].lsn < from_lsn) first++;
    for (;;) {
        error = nodedb_wal__replace_tombstones(w, t->at + first, durable - first, &harmless);
        if (!harmless || nodedb_io_status(-error) != NODEDB_ERR_DISK_FULL || w->spares.pool_count == 0) break;
        nodedb_wal__drop_pooled(w);
    }
    if (error != 0 && harmless)
        return nodedb_fail(err, nodedb_io_status(-error), -error, "cannot save the tombstones of %s",
                            nodedb__path_end(w->dir));
    if (error != 0) return nodedb_wal__break(w, -error, "saving the tombstones failed", 0, err);
    t->covered_lsn = w->lsns.durable;
    t->in_file = (uint32_t)(durable - first);
    return NODEDB_OK;
}

/* Brings the file up to date, if it misses a durable tombstone: before a segment is begun, so that what it misses is in
 * the last two segments, which recovery reads; before a segment is removed; and when the log is closed. */
static nodedb_status nodedb_wal__save_tombstones(nodedb_wal *w, nodedb_error *err) {
    size_t durable = nodedb_wal__durable_tombstones(w);
    if (durable == 0 || w->tombstones.at[durable - 1].lsn <= w->tombstones.covered_lsn) return NODEDB_OK;
    return nodedb_wal__write_tombstones(w, 0, err);
}

/* Recovery: loads the file. nodedb_wal__find_end adds what it misses. */
static nodedb_status nodedb_wal__recover_tombstones(nodedb_wal *w, const nodedb_wal__list *list, nodedb_error *err) {
    const nodedb_wal__segment *last = list->count > 0 ? &list->at[list->count - 1] : NULL;
    if (list->saw_tmp) {
        char path[NODEDB_WAL__PATH_BYTES];
        nodedb_wal__tombstones_path(path, w->dir, ".tmp");
        (void)w->io.unlink(w->io.ctx, path);
    }
    return nodedb_wal__load_tombstones(&w->io, &w->config.allocator, w->dir, last, &w->tombstones, err);
}

/* Recovery: adds a tombstone of the last two segments. It was read from the disk, so all up to it is durable. */
static nodedb_status nodedb_wal__recover_tombstone(nodedb_wal *w, const nodedb_wal_record *record, nodedb_error *err) {
    nodedb_wal_tombstone stone;
    nodedb_status status;
    if (record->lsn <= w->tombstones.covered_lsn) return NODEDB_OK; /* in the file, or forgotten */
    nodedb__store_release(&w->lsns.durable, record->lsn);
    status = nodedb_wal__tombstone_reserve(w, record, &stone, err);
    if (status == NODEDB_OK) nodedb_wal__tombstone_add(w, &stone, record->lsn);
    return status == NODEDB_ERR_INVALID ? NODEDB_OK : status; /* of no collection, in an old log: it kills nothing */
}

NODEDB_WAL_API nodedb_status nodedb_wal_append_tombstone(nodedb_wal *w, uint32_t tenant, uint64_t database,
                                                         uint64_t *lsn, nodedb_error *err) {
    nodedb_wal_record record;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE;
    record.tenant = tenant;
    record.database = database;
    return nodedb_wal_append(w, &record, lsn, err);
}

NODEDB_WAL_API nodedb_status nodedb_wal_forget_tombstones(nodedb_wal *w, uint64_t before_lsn, size_t *forgotten,
                                                          nodedb_error *err) {
    nodedb_wal__tombstones *t;
    nodedb_status status = NODEDB_OK;
    size_t durable, n = 0;
    if (forgotten != NULL) *forgotten = 0;
    if (w == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "nodedb_wal_forget_tombstones needs a log");
    (void)pthread_mutex_lock(&w->lock);
    t = &w->tombstones;
    durable = nodedb_wal__tombstones_compact(w);
    while (n < durable && t->at[n].lsn < before_lsn) n++;
    if (w->failed) status = nodedb_wal__failed(w, err);
    else if (n > 0) status = nodedb_wal__write_tombstones(w, before_lsn, err);
    if (status == NODEDB_OK && n > 0) {
        t->count -= n;
        t->compact -= n;
        memmove(t->at, t->at + n, t->count * sizeof *t->at);
        if (forgotten != NULL) *forgotten = n;
    }
    nodedb_wal__unlock(w);
    return status;
}

NODEDB_WAL_API size_t nodedb_wal_list_tombstones(nodedb_wal *w, nodedb_wal_tombstone *out, size_t most) {
    size_t durable;
    if (w == NULL) return 0;
    (void)pthread_mutex_lock(&w->lock);
    durable = nodedb_wal__tombstones_compact(w);
    if (most > durable) most = durable;
    if (out != NULL && most > 0) memcpy(out, w->tombstones.at, most * sizeof *out);
    nodedb_wal__unlock(w);
    return durable;
}

/* ===================================================================================================================
 * READ AHEAD: streams past the page cache, and threads that check segments
 *
 * A stream keeps several large O_DIRECT reads in flight in front of the reader, in a ring of chunks:
 *
 *     headroom  | slot 0    | slot 1    | ... | slot n-1   |
 *          [r2  | ]...      |           |     |   ... [r2  |   a record that crosses the ring's end: its beginning is
 *           ^-- copied here from the last slot --------^       copied, so that it stands in one piece
 *
 * Threads instead map the next segments and check their records before the reader gets there.
 * ================================================================================================================ */

/* ---- streams ---------------------------------------------------------------------------------------------------- */

#define NODEDB_WAL__STREAM_CHUNK_BYTES ((size_t)512 << 10) /* one read */
#define NODEDB_WAL__STREAM_CHUNKS 8
#define NODEDB_WAL__STREAM_HEADROOM_BYTES ((size_t)2 << 20)
#define NODEDB_WAL__SAMPLE_SEGMENTS 4 /* is a log in the page cache? So many segments are sampled, ... */
#define NODEDB_WAL__SAMPLE_PLACES 8   /* ... in so many places each, ... */
#define NODEDB_WAL__SAMPLE_PAGES 16   /* ... so many pages in a row */

#if !defined(NODEDB_NO_LIBURING)
/* The ring of a stream. */
typedef struct nodedb_wal__ring {
    struct io_uring ring;
    uint32_t started; /* reads that are queued or in the kernel */
} nodedb_wal__ring;

static void nodedb_wal__ring_start(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset, uint32_t tag) {
    nodedb_wal__ring *own = (nodedb_wal__ring *)ctx;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&own->ring);
    assert(sqe != NULL); /* the ring has room for all chunks */
    io_uring_prep_read(sqe, fd, buffer, (unsigned)bytes, offset);
    sqe->user_data = tag;
    own->started++;
}

static int nodedb_wal__ring_finish(void *ctx, bool wait, uint32_t *tag, int *result) {
    nodedb_wal__ring *own = (nodedb_wal__ring *)ctx;
    struct io_uring_cqe *cqe = NULL;
    int error = io_uring_sq_ready(&own->ring) > 0 ? io_uring_submit(&own->ring) : 0;
    if (error < 0 && error != -EAGAIN && error != -EBUSY && error != -ENOMEM && error != -EINTR) return error;
    if (io_uring_sq_ready(&own->ring) == own->started) { /* the kernel is short of memory: nothing to wait for */
        if (wait) (void)sched_yield();
        return 0;
    }
    error = wait ? io_uring_wait_cqe(&own->ring, &cqe) : io_uring_peek_cqe(&own->ring, &cqe);
    if (error != 0) return error == -EAGAIN || error == -EINTR ? 0 : error;
    *tag = (uint32_t)cqe->user_data;
    *result = cqe->res;
    io_uring_cqe_seen(&own->ring, cqe);
    own->started--;
    return 1;
}
#endif

/* Sets up a stream, which reads nothing yet. 0, or -errno where there is no io_uring (-ENOSYS: not in this build). */
static int nodedb_wal__stream_open(nodedb_wal__stream *s, const nodedb_allocator *allocator, const char *dir,
                                   const nodedb_wal__segment *segments, size_t count) {
    memset(s, 0, sizeof *s);
    s->dir = dir;
    s->segments = segments;
    s->count = count;
    s->allocator = *allocator;
    s->chunk_bytes = NODEDB_WAL__STREAM_CHUNK_BYTES;
    s->headroom_bytes = NODEDB_WAL__STREAM_HEADROOM_BYTES;
    s->chunks = NODEDB_WAL__STREAM_CHUNKS;
    s->fd = -1;
    s->at_end = true;
#if !defined(NODEDB_NO_LIBURING)
    {
        nodedb_wal__ring *own =
            (nodedb_wal__ring *)nodedb__alloc_zero(allocator, sizeof *own, NODEDB_CACHE_LINE_BYTES);
        int error = own == NULL ? -ENOMEM : io_uring_queue_init(NODEDB_WAL__STREAM_MAX_CHUNKS, &own->ring, 0);
        if (error != 0) {
            nodedb__release(allocator, own, sizeof *own);
            return error;
        }
        s->fetch.start = nodedb_wal__ring_start;
        s->fetch.finish = nodedb_wal__ring_finish;
        s->fetch.ctx = s->ring = own;
        return 0;
    }
#else
    return -ENOSYS;
#endif
}

static unsigned char *nodedb_wal__stream_at(const nodedb_wal__stream *s, uint64_t sequence, uint64_t offset) {
    return s->slots + (size_t)(sequence % s->chunks) * s->chunk_bytes + (size_t)(offset % s->chunk_bytes);
}

/* A read has ended. What it left out (it was short, interrupted, or dropped with the thread that had begun it) is read
 * here, one call after the other, as it is rare. */
static void nodedb_wal__stream_complete(nodedb_wal__stream *s, uint32_t tag, int result) {
    nodedb_wal__chunk *c = &s->chunk[tag];
    const nodedb_wal__segment *segment = &s->segments[c->segment];
    size_t align = nodedb_wal__direct_align(segment), want = (size_t)(c->to - c->from), got = 0;
    unsigned char *at = nodedb_wal__stream_at(s, tag, c->from);
    assert(tag < s->chunks && !c->done && s->in_flight > 0);
    s->in_flight--;
    if (result >= 0) got = (size_t)result;
    else if (result != -EINTR && result != -EAGAIN && result != -ECANCELED && result != -ENOMEM && result != -EBUSY)
        c->error = result;
    while (c->error == 0 && got < want) {
        size_t done = got / align * align, rest = (size_t)nodedb_wal__round_up(want - done, align);
        int64_t n = nodedb__posix_pread(NULL, c->fd, at + done, rest, c->from + done);
        if (n < 0) c->error = (int)n;
        else if (done + (size_t)n <= got) c->error = -ENODATA; /* the file has become shorter */
        else got = done + (size_t)n;
    }
    c->done = true;
    /* Behind the last record there are zeros up to the end of the segment. A payload may hold as many: then it is a
     * wrong guess, which costs time once. */
    if (c->error == 0 && !s->zeros_mislead && s->ahead == c->segment && s->ahead_offset >= c->to && want >= align &&
        nodedb_wal__all_zero(at + want - align, align)) {
        s->skipped = true;
        s->skipped_segment = c->segment;
        s->ahead_offset = segment->bytes;
    }
}

/* Reading ahead has finished with its file, which is closed with its last chunk. */
static void nodedb_wal__stream_leave_file(nodedb_wal__stream *s) {
    nodedb_wal__chunk *last = s->next > s->first ? &s->chunk[(s->next - 1) % s->chunks] : NULL;
    if (s->fd < 0) return;
    if (last != NULL && last->fd == s->fd) last->closes = true;
    else (void)close(s->fd);
    s->fd = -1;
}

/* Starts as many reads as `reach` allows. 0, or -errno where the ring fails. */
static int nodedb_wal__stream_fill(nodedb_wal__stream *s) {
    uint32_t tag;
    int result, finished;
    while (s->next - s->first < s->reach && !s->at_end) {
        const nodedb_wal__segment *segment = &s->segments[s->ahead];
        nodedb_wal__chunk *c = &s->chunk[s->next % s->chunks];
        if (s->ahead_offset >= segment->bytes) {
            nodedb_wal__stream_leave_file(s);
            s->ahead_offset = 0;
            if (s->ahead + 1 == s->count) s->at_end = true;
            else s->ahead++;
            continue;
        }
        memset(c, 0, sizeof *c);
        c->segment = s->ahead;
        c->from = s->ahead_offset;
        c->to = (c->from / s->chunk_bytes + 1) * s->chunk_bytes;
        if (c->to > segment->bytes) c->to = segment->bytes;
        if (s->fd < 0) {
            char path[NODEDB_WAL__PATH_BYTES];
            nodedb_wal__segment_path(path, s->dir, segment->first_lsn);
            s->fd = nodedb__posix_open(NULL, path, O_RDONLY | O_DIRECT, 0);
        }
        c->fd = s->fd;
        tag = (uint32_t)(s->next++ % s->chunks);
        s->ahead_offset = c->to;
        if (c->fd < 0) {
            c->done = true;
            c->error = s->fd;
            s->fd = -1;
            s->at_end = true; /* a reader that gets here reports it */
            break;
        }
        s->in_flight++;
        s->fetch.start(s->fetch.ctx, c->fd, nodedb_wal__stream_at(s, tag, c->from),
                       (size_t)nodedb_wal__round_up(c->to - c->from, nodedb_wal__direct_align(segment)), c->from, tag);
    }
    while ((finished = s->fetch.finish(s->fetch.ctx, false, &tag, &result)) == 1)
        nodedb_wal__stream_complete(s, tag, result);
    return finished;
}

static int nodedb_wal__stream_wait(nodedb_wal__stream *s, uint64_t sequence) {
    nodedb_wal__chunk *c = &s->chunk[sequence % s->chunks];
    assert(sequence >= s->first && sequence < s->next);
    while (!c->done) {
        uint32_t tag;
        int result, finished = s->fetch.finish(s->fetch.ctx, true, &tag, &result);
        if (finished < 0) return finished;
        if (finished == 1) nodedb_wal__stream_complete(s, tag, result);
    }
    return 0;
}

/* Gives up the chunks before `sequence`; waits until the device has finished with them. */
static int nodedb_wal__stream_release(nodedb_wal__stream *s, uint64_t sequence) {
    while (s->first < sequence) {
        nodedb_wal__chunk *c = &s->chunk[s->first % s->chunks];
        int error = nodedb_wal__stream_wait(s, s->first);
        if (error != 0) return error;
        if (c->closes) (void)close(c->fd);
        s->first++;
    }
    return 0;
}

/* The chunk that holds `offset` of segment `index`; UINT64_MAX: there is none. */
static uint64_t nodedb_wal__stream_find(const nodedb_wal__stream *s, size_t index, uint64_t offset) {
    for (uint64_t i = s->first; i < s->next; i++) {
        const nodedb_wal__chunk *c = &s->chunk[i % s->chunks];
        if (c->segment == index && c->from <= offset && offset < c->to) return i;
    }
    return UINT64_MAX;
}

/* Drops everything, and reads on from `offset` of segment `index`. */
static int nodedb_wal__stream_restart(nodedb_wal__stream *s, size_t index, uint64_t offset, uint32_t reach) {
    int error = nodedb_wal__stream_release(s, s->next);
    if (error != 0) return error;
    assert(s->in_flight == 0);
    nodedb_wal__stream_leave_file(s);
    if (s->skipped && s->skipped_segment == index) s->zeros_mislead = true;
    s->ahead = index;
    s->ahead_offset = offset - offset % nodedb_wal__direct_align(&s->segments[index]);
    s->at_end = s->forget = false;
    s->reach = reach;
    return nodedb_wal__stream_fill(s);
}

static int nodedb_wal__stream_memory(nodedb_wal__stream *s) {
    assert(s->chunks <= NODEDB_WAL__STREAM_MAX_CHUNKS);
    s->memory_bytes = s->headroom_bytes + s->chunks * s->chunk_bytes;
    s->memory = (unsigned char *)nodedb__alloc(&s->allocator, s->memory_bytes, NODEDB_WAL__HUGE_PAGE_BYTES);
    if (s->memory == NULL) return -ENOMEM;
#if defined(MADV_HUGEPAGE)
    /* 4 KiB pages, scattered over the memory, take two thirds of a virtual disk's rate */
    if (((uintptr_t)s->memory & (NODEDB_WAL__HUGE_PAGE_BYTES - 1)) == 0)
        (void)madvise(s->memory, s->memory_bytes, MADV_HUGEPAGE);
#endif
    s->slots = s->memory + s->headroom_bytes;
    return 0;
}

/* Shows at least `bytes` bytes from `offset` of segment `index`, in one piece. 0; 1 where that is more than fits, so
 * that it must be read in another way; or -errno, for the file's bytes from *bad_offset on. Gives up the chunks before
 * `offset`. */
static int nodedb_wal__stream_view(nodedb_wal__stream *s, size_t index, uint64_t offset, size_t bytes,
                                   const unsigned char **view, size_t *available, uint64_t *bad_offset) {
    uint64_t sequence, i, more = (offset + bytes - 1) / s->chunk_bytes - offset / s->chunk_bytes;
    size_t before_wrap;
    int error = 0;
    assert(bytes > 0 && offset + bytes <= s->segments[index].bytes);
    *bad_offset = offset;
    if (more >= s->chunks) return 1;
    if (s->memory == NULL) error = nodedb_wal__stream_memory(s);
    sequence = s->forget ? UINT64_MAX : nodedb_wal__stream_find(s, index, offset);
    if (error == 0 && sequence != UINT64_MAX && sequence > s->first) {
        error = nodedb_wal__stream_release(s, sequence);
        s->reach = s->reach * 2 < s->chunks ? s->reach * 2 : s->chunks;
    }
    if (s->reach <= more) s->reach = (uint32_t)more + 1;
    if (error == 0 && sequence != UINT64_MAX) error = nodedb_wal__stream_fill(s);
    if (error == 0 && (sequence == UINT64_MAX ||
                       nodedb_wal__stream_find(s, index, offset + bytes - 1) != sequence + more)) {
        error = nodedb_wal__stream_restart(s, index, offset, more < 2 ? 2 : (uint32_t)more + 1);
        sequence = s->first;
    }
    for (i = sequence; error == 0 && i <= sequence + more && i < s->next; i++) {
        *bad_offset = s->chunk[i % s->chunks].from;
        error = nodedb_wal__stream_wait(s, i);
        if (error == 0) error = s->chunk[i % s->chunks].error;
    }
    if (error != 0) return error;
    assert(sequence + more < s->next);
    *view = nodedb_wal__stream_at(s, sequence, offset);
    *available = more > 0 ? bytes : (size_t)(s->chunk[sequence % s->chunks].to - offset);
    before_wrap = (size_t)(s->slots + s->chunks * s->chunk_bytes - *view);
    if (bytes <= before_wrap) return 0;
    if (before_wrap > s->headroom_bytes) return 1;
    memcpy(s->slots - before_wrap, *view, before_wrap);
    *view = s->slots - before_wrap;
    return 0;
}

static void nodedb_wal__stream_close(nodedb_wal__stream *s) {
    bool idle = s->memory == NULL || nodedb_wal__stream_release(s, s->next) == 0;
    nodedb_wal__stream_leave_file(s);
#if !defined(NODEDB_NO_LIBURING)
    if (s->ring != NULL) {
        nodedb_wal__ring *own = (nodedb_wal__ring *)s->ring;
        io_uring_queue_exit(&own->ring);
        nodedb__release(&s->allocator, own, sizeof *own);
    }
#endif
    /* memory that the kernel may still write into must not be used for anything else: better to lose it */
    if (idle) nodedb__release(&s->allocator, s->memory, s->memory_bytes);
    memset(s, 0, sizeof *s);
    s->fd = -1;
}

/* ---- does a reader stream? -------------------------------------------------------------------------------------- */

/* True if most of the log from segment `first` on is in the page cache: a sample, of well under a millisecond. */
static bool nodedb_wal__mostly_cached(const nodedb_wal_reader *r, size_t first) {
    size_t segments = r->list.count - first, page = (size_t)sysconf(_SC_PAGESIZE), i, j, k, seen = 0, cached = 0;
    size_t sample = segments < NODEDB_WAL__SAMPLE_SEGMENTS ? segments : NODEDB_WAL__SAMPLE_SEGMENTS;
    for (i = 0; i < sample; i++) {
        const nodedb_wal__segment *segment = &r->list.at[first + i * segments / sample];
        char path[NODEDB_WAL__PATH_BYTES];
        int error = 0;
        unsigned char *map;
        nodedb_wal__segment_path(path, r->dir, segment->first_lsn);
        map = (unsigned char *)nodedb_wal__map_segment(path, segment->bytes, &error);
        for (j = 0; map != NULL && j < NODEDB_WAL__SAMPLE_PLACES; j++) {
            unsigned char vector[NODEDB_WAL__SAMPLE_PAGES];
            size_t at = (size_t)segment->bytes / NODEDB_WAL__SAMPLE_PLACES * j / page * page;
            size_t bytes = (size_t)segment->bytes - at;
            if (bytes > NODEDB_WAL__SAMPLE_PAGES * page) bytes = NODEDB_WAL__SAMPLE_PAGES * page;
            memset(vector, 0, sizeof vector);
            if (mincore(map + at, bytes, vector) != 0) continue;
            for (k = 0; k * page < bytes; k++, seen++) cached += vector[k] & 1;
        }
        if (map != NULL) (void)munmap(map, (size_t)segment->bytes);
    }
    return cached * 2 >= seen;
}

/* True if this reader streams, from segment `first` on. One answer for the whole log, as it is mostly read whole. */
static bool nodedb_wal__begin_streaming(nodedb_wal_reader *r, size_t first) {
    uint64_t bytes = 0;
    int error;
    if (r->config.io.pread != NULL || r->config.io.open != NULL || r->config.follow != NULL) return false;
    if (r->config.access != NODEDB_WAL_ACCESS_AUTO && r->config.access != NODEDB_WAL_ACCESS_STREAMED) return false;
    for (size_t i = first; i < r->list.count; i++) {
        bytes += r->list.at[i].bytes;
        if (r->list.at[i].block_bytes > NODEDB_WAL__STREAM_CHUNK_BYTES) return false;
    }
    if (r->config.access == NODEDB_WAL_ACCESS_AUTO &&
        (bytes < NODEDB_WAL__STREAM_FROM_BYTES || nodedb_wal__mostly_cached(r, first)))
        return false;
    error = nodedb_wal__stream_open(&r->stream, &r->config.allocator, r->dir, r->list.at, r->list.count);
    if (error == -ENOSYS && r->config.access == NODEDB_WAL_ACCESS_AUTO) return false; /* not in this build */
    if (error != 0)
        nodedb_say(
            &r->config.logger, NODEDB_LOG_WARNING,
            "log %s: io_uring is refused (%s), so it is read through the page cache; allow the io_uring system calls "
            "(seccomp, kernel.io_uring_disabled) for speed",
            r->dir, strerror(-error));
    return error == 0;
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

/* One segment of a parallel replay. A worker maps it and checks its records; the reader takes the mapping over. `lock`
 * guards `done`; before it is set the worker owns the rest, afterwards the reader. */
typedef struct nodedb_wal__ahead_slot {
    void *map;
    uint64_t trusted_until; /* every record that begins below it has a good checksum */
    bool done;
} nodedb_wal__ahead_slot;

/* Threads that check segments before the reader gets there. `lock` guards all that changes. Workers take segments in
 * order, at most `window` beyond the one that is being read, which bounds how many are mapped. */
struct nodedb_wal__ahead {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const char *dir;
    const nodedb_wal__segment *segments;
    nodedb_wal__ahead_slot *slots;
    size_t count, next, reading, window;
    pthread_t threads[NODEDB_WAL_MAX_THREADS];
    uint32_t thread_count;
    bool stop;
};

/* Maps segment `index` and checks its records, up to the first that is not good. The reader judges that one. */
static void nodedb_wal__check_ahead(nodedb_wal__ahead *ahead, size_t index) {
    const nodedb_wal__segment *segment = &ahead->segments[index];
    nodedb_wal__ahead_slot *slot = &ahead->slots[index];
    char path[NODEDB_WAL__PATH_BYTES];
    int error = 0;
    nodedb_wal__segment_path(path, ahead->dir, segment->first_lsn);
    slot->map = nodedb_wal__map_segment(path, segment->bytes, &error);
    if (slot->map == NULL) return; /* the reader meets the same error, and reports it */
    (void)madvise(slot->map, (size_t)segment->bytes, MADV_SEQUENTIAL);
    for (uint64_t at = segment->block_bytes; at < segment->bytes; slot->trusted_until = at) {
        nodedb_wal_record record;
        nodedb_wal__parsed found = nodedb_wal__parse((const unsigned char *)slot->map + at,
                                                     (size_t)(segment->bytes - at), segment, at, false, &record);
        if (found.kind == NODEDB_WAL__RECORD) at += found.total;
        else if (found.kind == NODEDB_WAL__ZERO && at % segment->block_bytes != 0)
            at = nodedb_wal__round_up(at, segment->block_bytes);
        else break;
    }
}

static void *nodedb_wal__ahead_main(void *argument) {
    nodedb_wal__ahead *ahead = (nodedb_wal__ahead *)argument;
    (void)pthread_mutex_lock(&ahead->lock);
    for (;;) {
        size_t index;
        while (!ahead->stop && ahead->next < ahead->count && ahead->next > ahead->reading + ahead->window)
            (void)pthread_cond_wait(&ahead->changed, &ahead->lock);
        if (ahead->stop || ahead->next >= ahead->count) break;
        index = ahead->next++;
        (void)pthread_mutex_unlock(&ahead->lock);
        nodedb_wal__check_ahead(ahead, index);
        (void)pthread_mutex_lock(&ahead->lock);
        ahead->slots[index].done = true;
        (void)pthread_cond_broadcast(&ahead->changed);
    }
    (void)pthread_mutex_unlock(&ahead->lock);
    return NULL;
}

static void nodedb_wal__ahead_stop(nodedb_wal__ahead *ahead, const nodedb_allocator *allocator) {
    if (ahead == NULL) return;
    (void)pthread_mutex_lock(&ahead->lock);
    ahead->stop = true;
    (void)pthread_cond_broadcast(&ahead->changed);
    (void)pthread_mutex_unlock(&ahead->lock);
    for (size_t i = 0; i < ahead->thread_count; i++) (void)pthread_join(ahead->threads[i], NULL);
    for (size_t i = 0; i < ahead->count; i++)
        if (ahead->slots[i].map != NULL) (void)munmap(ahead->slots[i].map, (size_t)ahead->segments[i].bytes);
    (void)pthread_mutex_destroy(&ahead->lock);
    (void)pthread_cond_destroy(&ahead->changed);
    nodedb__release(allocator, ahead->slots, ahead->count * sizeof *ahead->slots);
    nodedb__release(allocator, ahead, sizeof *ahead);
}

/* NULL where no thread can be started: the reader then works alone. */
static nodedb_wal__ahead *nodedb_wal__ahead_start(const nodedb_allocator *allocator, const char *dir,
                                                  const nodedb_wal__segment *segments, size_t count, size_t first,
                                                  uint32_t threads) {
    nodedb_wal__ahead *ahead =
        (nodedb_wal__ahead *)nodedb__alloc_zero(allocator, sizeof *ahead, NODEDB_CACHE_LINE_BYTES);
    if (ahead == NULL) return NULL;
    ahead->slots = (nodedb_wal__ahead_slot *)nodedb__alloc_zero(allocator, count * sizeof *ahead->slots, 8);
    if (ahead->slots == NULL) {
        nodedb__release(allocator, ahead, sizeof *ahead);
        return NULL;
    }
    (void)pthread_mutex_init(&ahead->lock, NULL);
    (void)pthread_cond_init(&ahead->changed, NULL);
    ahead->dir = dir;
    ahead->segments = segments;
    ahead->count = count;
    ahead->next = ahead->reading = first;
    ahead->window = threads;
    while (ahead->thread_count < threads &&
           pthread_create(&ahead->threads[ahead->thread_count], NULL, nodedb_wal__ahead_main, ahead) == 0)
        ahead->thread_count++;
    if (ahead->thread_count > 0) return ahead;
    nodedb_wal__ahead_stop(ahead, allocator);
    return NULL;
}

/* Waits for the checked mapping of segment `index`, which is the caller's from then on. NULL: it could not be mapped.
 * */
static void *nodedb_wal__ahead_take(nodedb_wal__ahead *ahead, size_t index, uint64_t *trusted_until) {
    void *map;
    (void)pthread_mutex_lock(&ahead->lock);
    ahead->reading = index;
    (void)pthread_cond_broadcast(&ahead->changed);
    while (!ahead->slots[index].done) (void)pthread_cond_wait(&ahead->changed, &ahead->lock);
    map = ahead->slots[index].map;
    ahead->slots[index].map = NULL;
    *trusted_until = ahead->slots[index].trusted_until;
    (void)pthread_mutex_unlock(&ahead->lock);
    return map;
}

/* ===================================================================================================================
 * ENCRYPTION: records sealed and opened by the caller's cipher
 *
 * Why no nonce is used for two texts. A record's nonce is its segment's epoch and its LSN. Within a segment no LSN is
 * given twice. No two segments with sealed records ever have one epoch, whatever crashes come between: a record is
 * sealed only when its segment's preamble and name are durable (begin_segment), and opening takes an epoch above all
 * that it finds. So it suffices that from then on a file of that epoch or a higher one is durably there:
 *
 *   - Truncation removes the oldest segment first, one by one, each durably, and never the newest. A spare that is
 *     deleted has a lower epoch than the segments, or one with which no record was sealed (it was not renamed in time).
 *   - A last segment without a whole record is replaced, by an atomic rename, by one with a higher epoch.
 *   - An unfinished segment behind the end of the log is not deleted but becomes dead-<its epoch>.wal. That goes only
 *     when a segment with a higher epoch has been begun (nodedb_wal__retire_segment, nodedb_wal__remove_dead).
 *
 * A preamble's epoch is not as unique: a power cut may take the preamble, and the epoch is given out again. So its
 * nonce has, in place of an LSN, a hash of what the preamble says, with the top bit set, which no LSN has.
 * ================================================================================================================ */

static void nodedb_wal__sealing(nodedb_wal_sealing *s, const nodedb_wal__segment *segment, const unsigned char *header,
                                size_t header_bytes, uint64_t number) {
    memset(s, 0, sizeof *s);
    s->key_id = segment->key_id;
    s->log_id = segment->log_id;
    s->epoch = segment->epoch;
    s->header = header;
    s->header_bytes = header_bytes;
    nodedb_put_u32(s->nonce, (uint32_t)segment->epoch);
    nodedb_put_u64(s->nonce + 4, number);
}

static void nodedb_wal__sealing_of_preamble(nodedb_wal_sealing *s, const nodedb_wal__segment *segment,
                                            const unsigned char *preamble) {
    uint64_t hash = nodedb_get_u32(preamble + NODEDB_WAL__SIGNED_BYTES - 4);
    for (size_t i = 0; i + 8 <= NODEDB_WAL__SIGNED_BYTES; i += 8)
        hash = nodedb_mix64(hash ^ nodedb_get_u64(preamble + i));
    nodedb_wal__sealing(s, segment, preamble, NODEDB_WAL__SIGNED_BYTES, hash | UINT64_C(1) << 63);
}

/* `header` holds the segment's preamble in its first half; the record's header goes into the other. */
static void nodedb_wal__sealing_of_record(nodedb_wal_sealing *s, const nodedb_wal__segment *segment,
                                          unsigned char *header, const unsigned char *record) {
    uint64_t lsn = nodedb_get_u64(record + NODEDB_WAL__RECORD_LSN_AT);
    memcpy(header + NODEDB_WAL__SIGNED_BYTES, record, NODEDB_WAL__SIGNED_BYTES);
    nodedb_put_u32(header + NODEDB_WAL__SIGNED_BYTES + NODEDB_WAL__RECORD_FLAGS_AT,
                   nodedb_get_u32(record + NODEDB_WAL__RECORD_FLAGS_AT) & NODEDB_WAL__FLAG_SEAL);
    nodedb_put_u32(header + NODEDB_WAL__SIGNED_BYTES + NODEDB_WAL__RECORD_CRC_AT, 0); /* both change with the group */
    nodedb_wal__sealing(s, segment, header, 2 * NODEDB_WAL__SIGNED_BYTES, lsn);
    s->lsn = lsn;
}

/* The key check goes behind the preamble in its block. */
static nodedb_status nodedb_wal__seal_preamble(const nodedb_wal_cipher *cipher, const nodedb_wal__segment *segment,
                                               unsigned char *block, nodedb_error *err) {
    nodedb_wal_sealing s;
    nodedb_status status;
    unsigned char *tag = block + NODEDB_WAL__PREAMBLE_KEY_CHECK_AT;
    nodedb_wal__sealing_of_preamble(&s, segment, block);
    status = cipher->seal(cipher->ctx, &s, tag, 0, tag);
    if (status == NODEDB_OK) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_KEY, 0, "the cipher could not seal the preamble of %020llu.wal with key %u: %s",
                        (unsigned long long)segment->first_lsn, (unsigned)segment->key_id, nodedb_status_text(status));
}

/* Checks that the cipher has the key of this segment. `block` begins with its preamble and the key check. */
static nodedb_status nodedb_wal__check_key(const nodedb_wal_cipher *cipher, const char *dir,
                                           const nodedb_wal__segment *segment, const unsigned char *block,
                                           nodedb_error *err) {
    nodedb_wal_sealing s;
    nodedb_status status;
    unsigned char nothing[1];
    const unsigned char *tag = block + NODEDB_WAL__PREAMBLE_KEY_CHECK_AT;
    nodedb_wal__sealing_of_preamble(&s, segment, block);
    status = cipher->open(cipher->ctx, &s, tag, 0, tag, nothing);
    if (status == NODEDB_OK) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_KEY, 0, "%s/%020llu.wal is encrypted with key %u: %s", nodedb__path_end(dir),
                        (unsigned long long)segment->first_lsn, (unsigned)segment->key_id,
                        status == NODEDB_ERR_CORRUPT
                            ? "the cipher's key of that number is another, or the preamble was altered"
                            : "the cipher has no such key");
}

/* Encrypts a record that nodedb_wal__encode_record made, where it stands. There is room for the tag. */
static nodedb_status nodedb_wal__seal_record(const nodedb_wal_cipher *cipher, const nodedb_wal__segment *segment,
                                             unsigned char *header, unsigned char *at, nodedb_error *err) {
    uint32_t bytes = nodedb_get_u32(at + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT), stored = bytes + NODEDB_WAL_TAG_BYTES;
    size_t end = (size_t)NODEDB_WAL_RECORD_HEADER_BYTES + stored;
    unsigned char *text = at + NODEDB_WAL_RECORD_HEADER_BYTES;
    nodedb_wal_sealing s;
    nodedb_status status;
    assert(segment->key_id != 0 && stored <= NODEDB_WAL_MAX_PAYLOAD_BYTES);
    nodedb_put_u16(at + NODEDB_WAL__RECORD_TYPE_AT,
                   (uint16_t)(nodedb_get_u16(at + NODEDB_WAL__RECORD_TYPE_AT) | NODEDB_WAL_ENCRYPTED));
    nodedb_put_u32(at + NODEDB_WAL__RECORD_PAYLOAD_BYTES_AT, stored);
    nodedb_wal__sealing_of_record(&s, segment, header, at);
    assert(s.lsn != 0 && s.lsn >> 63 == 0 && s.epoch <= UINT32_MAX); /* the nonce's fields hold them */
    status = cipher->seal(cipher->ctx, &s, text, bytes, text + bytes);
    if (status != NODEDB_OK)
        return nodedb_fail(err, NODEDB_ERR_KEY, 0, "the cipher could not seal record %llu with key %u: %s",
                            (unsigned long long)s.lsn, (unsigned)segment->key_id, nodedb_status_text(status));
    memset(at + end, 0, nodedb_wal__record_bytes(stored) - end);
    return NODEDB_OK;
}

/* Checks that the cipher has the key of the open segment, if that is encrypted. */
static nodedb_status nodedb_wal__reader_unlock(nodedb_wal_reader *r, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    const unsigned char *view;
    size_t available;
    nodedb_status status;
    if (segment->key_id == 0 || r->config.keep_encrypted || r->config.cipher.open == NULL) return NODEDB_OK;
    status = nodedb_wal__reader_view(r, 0, NODEDB_WAL_PREAMBLE_BYTES + NODEDB_WAL_TAG_BYTES, &view, &available, err);
    if (status != NODEDB_OK) return status;
    memcpy(r->unsealed.header, view, NODEDB_WAL__SIGNED_BYTES);
    return nodedb_wal__check_key(&r->config.cipher, r->dir, segment, view, err);
}

/* Makes a valid record of an encrypted segment what was appended, if the cipher opens it. */
static nodedb_status nodedb_wal__reader_decrypt(nodedb_wal_reader *r, nodedb_wal_record *record, nodedb_error *err) {
    const nodedb_wal__segment *segment = &r->list.at[r->index];
    const unsigned char *text = (const unsigned char *)record->payload;
    size_t bytes = record->payload_bytes - NODEDB_WAL_TAG_BYTES;
    nodedb_wal_sealing s;
    nodedb_status status;
    if (bytes > r->unsealed.capacity || r->unsealed.text == NULL) {
        size_t capacity = bytes + bytes / 2; /* so that it does not grow with each record that is a bit larger */
        if (capacity < NODEDB_WAL_MIN_BLOCK_BYTES) capacity = NODEDB_WAL_MIN_BLOCK_BYTES;
        if (capacity > NODEDB_WAL_MAX_PAYLOAD_BYTES) capacity = NODEDB_WAL_MAX_PAYLOAD_BYTES;
        nodedb__release(&r->config.allocator, r->unsealed.text, r->unsealed.capacity);
        r->unsealed.text = (unsigned char *)nodedb__alloc(&r->config.allocator, capacity, NODEDB_CACHE_LINE_BYTES);
        r->unsealed.capacity = r->unsealed.text != NULL ? capacity : 0;
        if (r->unsealed.text == NULL)
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to decrypt %zu bytes of %s", capacity,
                                nodedb__path_end(r->dir));
    }
    nodedb_wal__sealing_of_record(&s, segment, r->unsealed.header, text - NODEDB_WAL_RECORD_HEADER_BYTES);
    status = r->config.cipher.open(r->config.cipher.ctx, &s, text, bytes, text + bytes, r->unsealed.text);
    if (status == NODEDB_ERR_CORRUPT) return nodedb_wal__reader_altered(r, record->lsn, "its tag does not fit", err);
    if (status != NODEDB_OK) {
        (void)nodedb_fail(err, NODEDB_ERR_KEY, 0, "the cipher could not open record %llu of %s with key %u: %s",
                           (unsigned long long)record->lsn, nodedb__path_end(r->dir), (unsigned)segment->key_id,
                           nodedb_status_text(status));
        if (err != NULL) err->lsn = record->lsn, err->offset = r->position;
        return NODEDB_ERR_KEY;
    }
    record->type = (uint16_t)(record->type & ~NODEDB_WAL_ENCRYPTED);
    record->payload = r->unsealed.text;
    record->payload_bytes = (uint32_t)bytes;
    return NODEDB_OK;
}

#endif /* NODEDB_WAL_IMPLEMENTATION */

/* BEGIN NODEDB LICENCE
 *
 * This software is available under two licences. Choose the one that you prefer.
 *
 * ALTERNATIVE A: MIT License
 *
 * Copyright (c) 2026 the NodeDB authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 * documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 * permit persons to whom the Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 * Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * ALTERNATIVE B: Public Domain (www.unlicense.org)
 *
 * This is free and unencumbered software released into the public domain.
 *
 * Anyone is free to copy, modify, publish, use, compile, sell, or distribute this software, either in source code form
 * or as a compiled binary, for any purpose, commercial or non-commercial, and by any means.
 *
 * In jurisdictions that recognize copyright laws, the author or authors of this software dedicate any and all
 * copyright interest in the software to the public domain. We make this dedication for the benefit of the public at
 * large and to the detriment of our heirs and successors. We intend this dedication to be an overt act of
 * relinquishment in perpetuity of all present and future rights to this software under copyright law.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING
 * FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * END NODEDB LICENCE */
