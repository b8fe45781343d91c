-- End a job that this worker runs: its last events, its state, its expiry; and, when no further sink waits, its place
-- in the queue. A cancel that was asked for wins over every other end.
-- KEYS  1 job  2 log  3 live channel  4 stream  5 expiries  6 dead
-- ARGV  1 id  2 attempt  3 worker  4 seq of the first event  5 state  6 acknowledge 0|1  7 group
--       8 dead letter's reason or ''  9 attempt's error (JSON) or ''  10 own channel  11 retention s
--       12 number of events n  13…12+n the events  then field, value of the record
-- Gives {finished | duplicate | cancelled | gap | fenced | gone, last seq}
local job, log, live, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, group = ARGV[1], ARGV[7]
local h = read_job(job)
if not h then
  return {'gone', -1}
end
local first, last, n = tonumber(ARGV[4]), tonumber(h.seq), tonumber(ARGV[12])
if h.attempt == ARGV[2] and h.state == ARGV[5] and last == first + n - 1 then
  if ARGV[6] == '1' then
    drop_entry(stream, group, h.entry)
    redis.call('HSET', job, 'entry', '')
  end
  return {'duplicate', last}
end
if h.state ~= 'running' or h.attempt ~= ARGV[2] or h.owner ~= ARGV[3] then
  return {'fenced', -1}
end
if h.cancel == '1' and ARGV[5] ~= 'cancelled' then
  return {'cancelled', last}
end
local missing = gap(job, log, first, last)
if missing then
  return missing
end
local now = now_ms()
for i = 1, n do
  redis.call('XADD', log, ARGV[2] .. '-' .. int(first + i - 1), 'e', ARGV[12 + i])
  publish(live, ARGV[10], ARGV[12 + i])
end
if ARGV[9] ~= '' then
  add_failure(job, ARGV[9])
end
redis.call('HSET', job, 'state', ARGV[5], 'seq', int(first + n - 1), 'owner', '', 'ended', int(now),
  unpack(ARGV, 13 + n))
if ARGV[8] ~= '' then
  bury(KEYS[6], job, id, now, ARGV[8])
end
if ARGV[6] == '1' then
  drop_entry(stream, group, h.entry)
  redis.call('HSET', job, 'entry', '')
end
retire(job, log, KEYS[5], id, h.tenant, now, h.retention ~= '' and h.retention or ARGV[11])
return {'finished', first + n - 1}
