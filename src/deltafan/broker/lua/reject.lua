-- End a raw entry that never becomes a job: one that is no job (a dead letter with the reason), or one that is cancelled
-- before a worker has seen it. Those who follow the id it would have had get an end.
-- KEYS  1 job  2 log  3 live channel  4 stream  5 index  6 expiries  7 dead
-- ARGV  1 id  2 entry  3 group  4 the entry's text (cut)  5 reason, or '' for cancelled  6 meta fragment  7 retention s
--       8 queue  9 priority
-- Gives 1, or 0 where the job has a record
local k = {job = KEYS[1], log = KEYS[2], live = KEYS[3], expiries = KEYS[6]}
local id, reason, now = ARGV[1], ARGV[5], now_ms()
local known = redis.call('EXISTS', k.job) == 1
if known and reason == '' then
  return 0
end
drop_entry(KEYS[4], ARGV[3], ARGV[2])
local errors = '[]'
if reason ~= '' then
  errors = '[{"attempt":0,"code":"bad_request","message":' .. cjson.encode(reason) .. ',"at":' .. int(now) .. '}]'
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', MOST_DEAD, '*', 'id', id, 'job', ARGV[4], 'tenant', 'default',
    'reason', 'bad_request', 'errors', errors, 'died', int(now))
end
if known then
  return 0
end
redis.call('HSET', k.job, 'state', 'queued', 'tenant', 'default', 'created', int(now), 'attempt', 0, 'seq', -1,
  'chars', 0, 'failures', 0, 'entry', '', 'meta', ARGV[6], 'model', '', 'spec', '', 'errors', errors,
  'retention', ARGV[7], 'queue', ARGV[8], 'priority', ARGV[9], 'stream', KEYS[4])
redis.call('ZADD', KEYS[5], int(now), id)
if reason ~= '' then
  end_unowned(k, id, read_job(k.job), now, 'failed', 'error', 'bad_request', reason)
else
  end_unowned(k, id, read_job(k.job), now, 'cancelled', 'cancelled', '', '')
end
return 1
