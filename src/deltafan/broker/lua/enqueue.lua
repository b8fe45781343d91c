-- Make a job: its record, and its place in the queue or among the delayed.
-- With `entry`, adopt a raw entry that a web app XADDed and this worker has read: the entry is the job's place.
-- KEYS  1 job  2 stream  3 delayed  4 deadlines  5 index  6 idempotency (the job key again where there is none)
-- ARGV  1 id  2 tenant  3 created ms or ''  4 delay ms or ''  5 run at ms or ''  6 expires in ms or ''
--       7 idempotency digest or ''  8 idempotency ttl ms  9 queue bound  10 group  11 entry or ''  12 model
--       13… field, value of the record
-- Gives {status, id}: queued | delayed | same (the key's first job) | conflict | taken | full
local job, stream, delayed, deadlines, index, idem = unpack(KEYS)
local id, tenant = ARGV[1], ARGV[2]
local now = now_ms()
local entry = ARGV[11]

if ARGV[7] ~= '' then
  local first = redis.call('HMGET', idem, 'id', 'digest')
  if first[1] and first[1] ~= id then
    if entry ~= '' then
      drop_entry(stream, ARGV[10], entry)
    end
    return {first[2] == ARGV[7] and 'same' or 'conflict', first[1]}
  end
end
if redis.call('EXISTS', job) == 1 then
  return {'taken', id}
end
if entry == '' and redis.call('XLEN', stream) + redis.call('ZCARD', delayed) >= tonumber(ARGV[9]) then
  return {'full', id}
end

-- An entry added by hand may have an id of its own; nothing is made in the future.
local created = ARGV[3] ~= '' and math.min(tonumber(ARGV[3]), now) or now
local due = now
if ARGV[4] ~= '' then due = created + tonumber(ARGV[4]) end
if ARGV[5] ~= '' then due = tonumber(ARGV[5]) end
local state = due > now and 'delayed' or 'queued'

if state == 'delayed' then
  drop_entry(stream, ARGV[10], entry)
  entry = ''
  redis.call('ZADD', delayed, int(due), id)
elseif entry == '' then
  entry = redis.call('XADD', stream, '*', 'id', id, 'model', ARGV[12])
end
local deadline = ''
if ARGV[6] ~= '' then
  deadline = int(created + tonumber(ARGV[6]))
  redis.call('ZADD', deadlines, deadline, id)
end
redis.call('HSET', job, 'state', state, 'tenant', tenant, 'created', int(created), 'attempt', 0, 'seq', -1,
  'chars', 0, 'failures', 0, 'entry', entry, 'stream', stream, 'deadline', deadline, 'run', server_run(),
  unpack(ARGV, 13))
redis.call('ZADD', index, int(created), id)
redis.call('PERSIST', index)
if ARGV[7] ~= '' then
  redis.call('HSET', idem, 'id', id, 'digest', ARGV[7])
  redis.call('PEXPIRE', idem, ARGV[8])
end
return {state, id}
